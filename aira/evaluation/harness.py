"""lm-evaluation-harness with its log-likelihoods computed on packed trees: its tasks, its numbers, less work."""

import logging
import math
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from pytorch_lightning.utilities import move_data_to_device
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aira.data.plan import fill_rows
from aira.data.trees import Row, Tree, pack, tree_length
from aira.errors import AiraError
from aira.evaluation.tries import plan
from aira.inference.generation import check_logits
from aira.models.forward import Prefix, hidden_states, keys_and_values
from aira.models.head import chunks, lm_head

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What is asked, as text, and the token ids of its context and of its continuation."""

LogLikelihood = tuple[float, bool]
"""That of a continuation, and whether it is what greedy decoding gives."""


class PackedLM(HFLM):  # type: ignore[misc]
    """A causal language model as the harness sees it.

    Tokens, truncation and metrics are the harness's own. Sequences that share a beginning share its computation, none
    is padded, and the LM head reads only the positions that are scored.

    Args:
        model: with `trees` attention; it is put into evaluation mode.
        tokenizer: its own.
        tokens_per_row: of one forward pass.
        autocast: None for the model's own precision, or the type that products are computed in.
        settings: of `HFLM`, such as `max_length` in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_row: int = 1024,
        autocast: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        log = logging.getLogger("lm_eval.models.huggingface")
        level = log.level
        log.setLevel(logging.ERROR)  # it warns of a model that is loaded already
        super().__init__(model.eval(), tokenizer=tokenizer, backend="causal", **settings)
        log.setLevel(level)
        self.tokens_per_row, self.autocast = tokens_per_row, autocast
        self._requests: list[Any] = []  # requests of the call that is under way, for messages

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take a store of responses, without the log-likelihoods in it that are no numbers."""
        store = getattr(cache_hook, "dbdict", None)
        if store is not None:
            for key, value in list(store.items()):
                number = next(iter(value), None) if isinstance(value, (tuple, list)) else value
                if not isinstance(number, str) and not (isinstance(number, (int, float)) and number < math.inf):
                    del store[key]
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """The log-likelihoods of the harness's requests.

        Raises:
            AiraError: the model gives one of them no number.
        """
        self._requests = requests
        try:
            responses: list[LogLikelihood] = super().loglikelihood(requests, disable_tqdm)
        finally:
            self._requests = []
        return responses

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generated continuations of the harness's requests.

        Raises:
            AiraError: they would be made of logits that are no numbers.
        """
        check = check_logits(self.model)

        def checked(_: Any, tokens: Any, logits: torch.Tensor) -> None:
            check(tokens[0], logits)

        hook = self.model.get_output_embeddings().register_forward_hook(checked)
        try:
            texts: list[str] = super().generate_until(requests, disable_tqdm)
        finally:
            hook.remove()
        return texts

    def _not_finite(self, number: int, request: Request) -> AiraError:
        """What to say where the model's output is no probability distribution."""
        row = (
            f" (task {self._requests[number].task_name}, row {self._requests[number].doc_id})" if self._requests else ""
        )
        text = self.tokenizer.decode(request[1][-12:] + request[2][:12])
        return AiraError(
            f"{self.model.name_or_path} gives no number as the log-likelihood of …{text!r}{row}: its logits are NaN or "
            "infinite, so no figure of it means anything. Its weights or eval.precision are to blame: train it again, "
            "or try eval.precision=32-true."
        )

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[LogLikelihood]:
        sequences: dict[tuple[tuple[int, ...], int], list[int]] = {}  # equal ones are computed once
        for i, (_, context, continuation) in enumerate(requests):
            ids = tuple((context + continuation)[-(self.max_length + 1) :])  # as the harness truncates, from the left
            sequences.setdefault((ids, len(ids) - len(continuation)), []).append(i)
        tokens, contexts = [ids for ids, _ in sequences], [context for _, context in sequences]
        numbers = list(sequences.values())  # of the requests of each sequence
        responses: list[LogLikelihood | None] = [None] * len(requests)
        with tqdm(total=len(requests), desc="Log-likelihoods", disable=disable_tqdm or self.rank != 0) as bar:
            for group in plan([ids[:-1] for ids in tokens], contexts, self.tokens_per_row):
                cached = None
                if group.cached:
                    with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                        cached = keys_and_values(self.model, list(tokens[group.trees[0][0]][: group.cached]))
                trees = [
                    Tree([tokens[i] for i in tree], [[j >= contexts[i] for j in range(len(tokens[i]))] for i in tree])
                    for tree in group.trees
                ]
                lengths = torch.tensor([tree_length(tree.branches) - group.cached for tree in trees]).numpy()
                longest_first = lengths.argsort(kind="stable")[::-1].tolist()
                for members in fill_rows(longest_first, lengths, self.tokens_per_row, padded=False):
                    row = pack([trees[i] for i in members], group.cached, last=False)
                    indices = [i for member in members for i in group.trees[member]]
                    for i, response in zip(indices, self._score(row, len(indices), cached), strict=True):
                        for number in numbers[i]:
                            if math.isnan(response[0]):
                                raise self._not_finite(number, requests[number])
                            responses[number] = response
                            if requests[number][0] is not None:
                                self.cache_hook.add_partial("loglikelihood", requests[number][0], response)
                        bar.update(len(numbers[i]))
        return [response for response in responses if response is not None]

    def _score(self, row: Row, count: int, cached: Prefix | None) -> list[LogLikelihood]:
        """The log-likelihoods of a row's branches: NaN where logits are no numbers, -inf for an impossible token."""
        row = move_data_to_device(row, self.device)
        sums = torch.zeros(count, device=self.device)
        greedy = torch.ones(count, dtype=torch.bool, device=self.device)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            hidden = hidden_states(self.model, row, cached)[row.source]
            head = lm_head(self.model)
            for part in chunks(len(row.target)):
                logits = head(hidden[part]).float()
                log_z = logits.logsumexp(-1)
                log_probs = logits.gather(1, row.target[part, None])[:, 0] - log_z
                log_probs = torch.where(log_z.isfinite(), log_probs, torch.nan)
                sums.index_add_(0, row.branch[part], log_probs)
                not_greedy = logits.argmax(-1) != row.target[part]
                greedy[row.branch[part][not_greedy]] = False
        return list(zip(sums.tolist(), greedy.tolist(), strict=True))
