"""Scores of texts and answers by an exported reward or toxicity model, computed on packed trees."""

from collections.abc import Sequence

import numpy as np
import torch
from pytorch_lightning.utilities import move_data_to_device

from aira.data.plan import fill_rows
from aira.data.schemas import Message
from aira.data.tokenize import encode_scorer, separator_id
from aira.data.trees import Tree, pack, pad
from aira.errors import AiraError
from aira.models.backbone import VERIFIED, context_length, load_config, load_model, load_tokenizer, scores


class ScoringModel:
    """A reward or toxicity model, ready to score.

    Args:
        path: an export, or another folder or hub id in the same form: a sequence classifier with one output.
        device: where it runs.
        max_length: tokens of a text with its prompt; what is longer is cut, but for its end token. None for the model's
            context.
        tokens_per_row: of one forward pass.

    Attributes:
        meaning: what a high score stands for, by the model's `id2label`: `reward` or `harmless` where Aira trained it.
        threshold: a toxicity model takes a text to be toxic where its score is below this.

    Raises:
        AiraError: there is no such model, or it is no scorer with one output.
    """

    def __init__(
        self, path: str, device: str = "cpu", max_length: int | None = None, tokens_per_row: int = 1024
    ) -> None:
        config, _ = load_config(path, vocab_size=0, role=None, head="score")
        if config.num_labels != 1 or not any("SequenceClassification" in name for name in config.architectures or ()):
            raise AiraError(f"{path} is no scorer: it needs a sequence-classification head with one output.")
        self.meaning, self.threshold = config.id2label[0], float(getattr(config, "threshold", 0.0))
        self.padded = config.model_type in VERIFIED["encoder"]
        role = "encoder" if self.padded else "causal"
        self.tokenizer, added = load_tokenizer(path, role=role, head="score", template="native")
        self.model = load_model(
            path,
            self.tokenizer,
            added,
            role=role,
            head="score",
            label=self.meaning,
            attn_implementation="sdpa" if self.padded else "trees",
        )
        self.model.eval().to(device)
        self.device, self.tokens_per_row = device, tokens_per_row
        self._separator = separator_id(self.tokenizer)
        self.max_length = min(max_length or context_length(config), context_length(config))

    @torch.inference_mode()
    def score(self, examples: Sequence[list[list[Message]]]) -> list[np.ndarray]:
        """Score conversations.

        Args:
            examples: conversations that share a prompt stand together, and their prompt is read once. Each ends with
                the assistant's turn that is scored; a lone text is that turn alone.

        Returns:
            For each example, [conversations] scores as float32.

        Raises:
            aira.data.schemas.BadRow: a prompt leaves no room for its answer.
        """
        encoded = [encode_scorer(self.tokenizer, list(one), self.max_length, self.padded) for one in examples]
        lengths = np.array([max(map(len, e["branches"])) if self.padded else e["length"] for e in encoded])
        trees = [Tree(e["branches"], e["scored"]) for e in encoded]
        found: list[np.ndarray] = [np.empty(0)] * len(trees)
        for indices in fill_rows(
            np.argsort(-lengths, kind="stable").tolist(), lengths, self.tokens_per_row, self.padded
        ):
            chosen = [trees[i] for i in indices]
            row = pad(chosen, self.tokenizer.pad_token_id, self._separator) if self.padded else pack(chosen)
            values = scores(self.model, move_data_to_device(row, self.device)).cpu().numpy()
            counts = np.cumsum([len(tree.branches) for tree in chosen])[:-1]
            for i, part in zip(indices, np.split(values, counts), strict=True):
                found[i] = part
        return found
