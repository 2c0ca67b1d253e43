"""Scores of texts and answers by an exported reward or toxicity model, computed on packed trees."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import move_data_to_device

from aira.data.plan import fill_rows
from aira.data.tokenize import encode_scorer, separator_id
from aira.data.trees import Tree, pack, pad, padded_length, tree_length
from aira.data.turns import Message
from aira.errors import AiraError
from aira.models.families import context_length, family_of, score_label
from aira.models.forward import scores
from aira.models.loading import load_config, load_model, load_tokenizer


class ScoringModel:
    """A reward or toxicity model, ready to score.

    Args:
        path: an export, or another folder or hub id in the same form: a sequence classifier with one output.
        device: where it runs.
        max_length: tokens of a text with its prompt; what is longer is cut, but for its end token. None for the model's
            context.
        tokens_per_row: of one forward pass.
        autocast: None for float32, or the type that products are computed in.
        where: `revision` and `trust_remote_code` of a model on the hub.

    Attributes:
        meaning: what a high score stands for, by the model's `id2label`: `reward` or `harmless` where Aira trained it.
        threshold: a toxicity model takes a text to be toxic where its score is below this.

    Raises:
        AiraError: there is no such model, or it is no scorer with one output.
    """

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        max_length: int | None = None,
        tokens_per_row: int = 1024,
        autocast: torch.dtype | None = None,
        **where: Any,
    ) -> None:
        config, _ = load_config(path, vocab_size=0, architecture=None, head="score", **where)
        meaning = score_label(config)
        if config.num_labels != 1 or meaning is None:
            raise AiraError(f"{path} is no scorer: it needs a sequence-classification head with one output.")
        threshold = getattr(config, "threshold", 0.0)
        if not (isinstance(threshold, (int, float)) and abs(threshold) < 1e300):
            raise AiraError(f"{path}: the threshold in its config.json is {threshold}, below which no score is.")
        self.path, self.meaning, self.threshold = path, meaning, threshold
        self.padded = family_of(config).architecture == "encoder"
        architecture = "encoder" if self.padded else "causal"
        self.tokenizer, added = load_tokenizer(path, architecture=architecture, head="score", template=None, **where)
        self.model = load_model(
            path,
            self.tokenizer,
            added,
            architecture=architecture,
            head="score",
            label=self.meaning,
            attn_implementation="sdpa" if self.padded else "trees",
            **where,
        )
        self.model.eval().to(device)
        self.device, self.tokens_per_row, self.autocast = device, tokens_per_row, autocast
        self._separator = separator_id(self.tokenizer)
        self.max_length = min(max_length or context_length(config), context_length(config))

    def encode(self, conversations: list[list[Message]]) -> Tree:
        """Tokenize conversations that share a prompt, which is then read once.

        Args:
            conversations: each ends with the assistant's turn that is scored; a lone text is that turn alone.

        Raises:
            aira.data.schemas.BadRow: the prompt leaves no room for an answer.
        """
        encoded = encode_scorer(self.tokenizer, conversations, self.max_length, self.padded)
        return Tree(encoded["branches"], encoded["scored"])

    @torch.inference_mode()
    def score(self, trees: Sequence[Tree], names: Sequence[str] = ()) -> list[list[float]]:
        """Score what `encode` gave.

        Args:
            names: what each tree is, for messages.

        Returns:
            For each tree, the scores of its conversations.

        Raises:
            AiraError: a score is no number.
        """
        lengths = np.array([(padded_length if self.padded else tree_length)(tree.branches) for tree in trees])
        results: list[list[float]] = [[] for _ in trees]
        longest_first = np.argsort(-lengths, kind="stable").tolist()
        for indices in fill_rows(longest_first, lengths, self.tokens_per_row, self.padded):
            chosen = [trees[i] for i in indices]
            row = pad(chosen, self.tokenizer.pad_token_id, self._separator) if self.padded else pack(chosen)
            with torch.autocast(torch.device(self.device).type, self.autocast, enabled=self.autocast is not None):
                values = iter(scores(self.model, move_data_to_device(row, self.device)).tolist())
            for i in indices:
                results[i] = [next(values) for _ in trees[i].branches]
                if not all(map(math.isfinite, results[i])):
                    text = self.tokenizer.decode(trees[i].branches[0], skip_special_tokens=True)
                    raise AiraError(
                        f"{self.path} gives {names[i] if names else 'a text'} ({text[:60]!r}…) a score that is no "
                        f"number ({results[i]}), by which nothing can be told. Its weights, or the precision that it "
                        "runs in, are to blame: train it again, or take another checkpoint."
                    )
        return results
