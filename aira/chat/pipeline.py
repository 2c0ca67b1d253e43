"""The chat: n answers are sampled, those that the guard flags are dropped, the one with the highest reward is given."""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from aira.config.check import check_value
from aira.config.schema import Answering
from aira.config.values import check_sampling
from aira.data.texts import BadRow
from aira.data.tokenize import tokenizer_hash
from aira.data.trees import Tree
from aira.data.turns import Message
from aira.errors import AiraError
from aira.files import locate, report_skipped
from aira.inference.generation import answer, prompt_ids
from aira.inference.scorers import ScoringModel
from aira.models.families import context_length, score_label
from aira.models.loading import load_config, load_model, load_tokenizer
from aira.models.template import use_own_template
from aira.models.weights import weights_hash

CHOSEN, UNCHOSEN, FLAGGED, EMPTY = "chosen", "unchosen", "flagged", "empty"


DEFAULT_MESSAGES = {
    "en": "I am sorry, I have no good answer to that. Could you ask in another way?",
    "pt": "Desculpe, não tenho uma boa resposta para isso. Você poderia perguntar de outra forma?",
}
"""The answer if no candidate is left, by language."""


@dataclass
class Candidate:
    """An answer that was sampled, with what became of it."""

    text: str
    reward: float | None = None  # of the reward model, where there is one; the higher, the better
    harmless: float | None = None  # probability, by the toxicity model where there is one
    fate: str = ""  # chosen, unchosen, flagged or empty


@dataclass
class Reply:
    """What is answered, and why."""

    text: str
    candidates: list[Candidate]
    forgotten: int  # messages at the beginning of the conversation for which there was no room

    def stream(self) -> Iterator[str]:
        """The answer as it grows, word by word; it is known as a whole before, since it was chosen among several."""
        for match in re.finditer(r"\S+", self.text):
            yield self.text[: match.end()]


class Chat:
    """A language model that answers, with a guard and a reranker.

    Args:
        chat_model: a language model with a chat template: an export, a run's folder, another folder or a hub id.
        reward_model: its score picks the answer; without one, the first that is left is given.
        toxicity_model: drops answers; without one, none is.
        n: candidates for each answer.
        temperature, top_k, top_p, repetition_penalty: of the sampling; temperature 0 is greedy, with one candidate.
        max_new_tokens: the longest answer.
        threshold: an answer is flagged where its probability of being harmless is below; by default, where the toxicity
            model's own threshold says so.
        threshold_logit: the same as a score, in place of `threshold`; the published demo has 5.
        guard_reads: `answer`, or `exchange` for the message and the answer with a space between, as the published demo.
        high_score: what a high score of the toxicity model means, harmless or toxic, where its export does not say it.
        language: `en` or `pt`; a model whose card names another one is warned of.
        default_message: said where no candidate is left; by default `DEFAULT_MESSAGES`.
        device: where the models run.
        tokens_per_row: of one forward pass of the scorers.

    Raises:
        AiraError: there is no such model, or one is for another purpose than it is given.
    """

    def __init__(
        self,
        chat_model: str,
        reward_model: str | None = None,
        toxicity_model: str | None = None,
        *,
        n: int = 2,
        temperature: float = 0.1,
        top_k: int = 50,
        top_p: float = 1.0,
        repetition_penalty: float = 1.1,
        max_new_tokens: int = 200,
        threshold: float | None = None,
        threshold_logit: float | None = None,
        guard_reads: str = "answer",
        high_score: str | None = None,
        language: str = "en",
        default_message: str | None = None,
        device: str = "cpu",
        tokens_per_row: int = 1024,
    ) -> None:
        _check(max_new_tokens=max_new_tokens, tokens_per_row=tokens_per_row)
        guard: dict[str, Any] = {"reads": guard_reads, "high_score": high_score}
        guard |= {"threshold": threshold, "threshold_logit": threshold_logit}
        _check(**{f"guard.{name}": value for name, value in guard.items()})
        if language not in DEFAULT_MESSAGES:
            raise AiraError(f"language={language}: valid are {', '.join(DEFAULT_MESSAGES)}.")
        self.set_sampling(n, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
        if threshold is not None and threshold_logit is not None:
            raise AiraError(
                "guard.threshold and guard.threshold_logit (threshold and threshold_logit in Python) are one limit in "
                "two units: set one of them."
            )
        self._check_purposes(chat_model, reward_model, toxicity_model, high_score)
        for path in filter(None, (chat_model, reward_model, toxicity_model)):
            spoken = language_of(path)
            if spoken and spoken != language:
                warnings.warn(f"{path} was trained in language={spoken}, and the chat is in {language}.", stacklevel=2)

        self.paths = {"chat": chat_model, "reward": reward_model, "toxicity": toxicity_model}
        self.tokenizer, added = load_tokenizer(chat_model, template=None)
        use_own_template(self.tokenizer)
        self.model = load_model(chat_model, self.tokenizer, added).to(device).eval()
        self.reward, self.guard = (
            ScoringModel(path, device, tokens_per_row=tokens_per_row) if path else None
            for path in (reward_model, toxicity_model)
        )
        self.max_new_tokens, self.guard_reads = max_new_tokens, guard_reads
        self.sign = -1.0 if high_score == "toxic" and self.guard and self.guard.meaning != "harmless" else 1.0
        self.threshold = 0.0
        if threshold_logit is not None:
            self.threshold = threshold_logit
        elif threshold is not None:
            self.threshold = math.log(threshold / (1 - threshold))
        elif self.guard:
            self.threshold = self.sign * self.guard.threshold
        self.default_message = default_message or DEFAULT_MESSAGES[language]

    def set_sampling(self, n: int, *, temperature: float, top_k: int, top_p: float, repetition_penalty: float) -> None:
        """Sample in another way from now on; arguments as for the class.

        Raises:
            AiraError: several candidates, and temperature 0; or a number is out of its range.
        """
        _check(n=n, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
        check_sampling(n, temperature)
        self.n = n
        self.sampling: dict[str, float] = {"repetition_penalty": repetition_penalty}
        if temperature:
            self.sampling |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    def made_of(self) -> dict[str, list[str]]:
        """Hashes of the `weights` and `tokenizers` of the chat model and of the scorers that there are."""
        models = [one for one in (self, self.reward, self.guard) if one]
        return {
            "weights": [weights_hash(one.model) for one in models],
            "tokenizers": [tokenizer_hash(one.tokenizer) for one in models],
        }

    def key(self) -> str:
        """A short hash of all that answers depend on beside the messages and the seed: models, sampling and guard."""
        settings = [self.n, self.sampling, self.max_new_tokens, self.guard_reads, self.sign, self.threshold]
        settings_json = json.dumps([self.made_of(), settings, self.default_message], sort_keys=True)
        return hashlib.sha256(settings_json.encode()).hexdigest()[:16]

    @staticmethod
    def _check_purposes(model: str, reward: str | None, toxicity: str | None, high_score: str | None) -> None:
        """Each model is what it is taken for; asked before any is loaded."""
        labels = {}
        for path in filter(None, (model, reward, toxicity)):
            config, _ = load_config(path, vocab_size=0, architecture=None, head="score")
            labels[path] = score_label(config)
        if labels[model] is not None:
            raise AiraError(
                f"chat_model={model} is a scorer (of {labels[model]}), and cannot answer. Name a chat model."
            )
        if reward and labels[reward] in (None, "harmless", "toxic"):
            kind = "a language model" if labels[reward] is None else "a toxicity model"
            raise AiraError(f"reward_model={reward} is {kind}. Name an export of method=reward, or none.")
        if toxicity and labels[toxicity] in (None, "reward"):
            kind = "a language model" if labels[toxicity] is None else "a reward model"
            raise AiraError(f"toxicity_model={toxicity} is {kind}. Name an export of method=toxicity, or none.")
        if toxicity and labels[toxicity] != "harmless" and not high_score:
            raise AiraError(
                f"toxicity_model={toxicity} does not say what a high score means (id2label is {labels[toxicity]}): set "
                "guard.high_score=harmless (as the published ToxiGuardrail) or guard.high_score=toxic."
            )

    def reply(
        self,
        message: str,
        history: Sequence[Message] = (),
        *,
        seed: int = 0,
        guard: bool = True,
    ) -> Reply:
        """Answer a message.

        Args:
            message: the user's.
            history: the conversation before it, as {role, content}. Where the context has no room for all of it and the
                longest answer, the oldest messages are left out, up to a user's turn.
            seed: of the sampling: the same one gives the same answer.
            guard: False answers as if there was no toxicity model; candidates have its scores all the same.

        Raises:
            AiraError: the message is empty, or longer than the context.
        """
        if not message.strip():
            raise AiraError("The message is empty.")
        messages = [*history, {"role": "user", "content": message}]
        before, context = len(messages), context_length(self.model.config)
        while len(messages) > 1 and len(prompt_ids(self.tokenizer, messages)) + self.max_new_tokens > context:
            turns = [i for i, one in enumerate(messages) if one["role"] == "user" and i > 0]
            messages = messages[turns[0] :]
        (candidates,) = self.candidates([messages], seed=seed)
        chosen = self.choose(candidates, guard)
        return Reply(chosen.text if chosen else self.default_message, candidates, before - len(messages))

    def candidates(self, conversations: Sequence[list[Message]], *, seed: int = 0) -> list[list[Candidate]]:
        """Sample n answers to each conversation, and score them.

        Args:
            conversations: each ends with the user's turn and fits into the context.
            seed: of the sampling; answers depend on what else is asked in the same call.

        Raises:
            AiraError: a prompt is longer than the model's context.
        """
        texts = answer(
            self.model, self.tokenizer, conversations, self.max_new_tokens, n=self.n, seed=seed, **self.sampling
        )
        sampled = [[Candidate(text) for text in several] for several in texts]
        self.score(conversations, sampled)
        return sampled

    def score(self, conversations: Sequence[list[Message]], candidates: Sequence[list[Candidate]]) -> None:
        """Give candidates the scores of the reward and the toxicity model, where there is one, in place."""
        if self.reward:
            texts = [list(dict.fromkeys(one.text for one in several)) for several in candidates]
            for several, scores in zip(
                candidates, _score_texts(self.reward, list(zip(conversations, texts, strict=True)))
            ):
                for one in several:
                    one.reward = scores[one.text]
        if self.guard:
            read = [
                [
                    f"{conversation[-1]['content']} {one.text}" if self.guard_reads == "exchange" else one.text
                    for one in several
                ]
                for conversation, several in zip(conversations, candidates, strict=True)
            ]
            (scores,) = _score_texts(
                self.guard, [([], list(dict.fromkeys(text for several in read for text in several)))]
            )
            for several, kept in zip(candidates, read, strict=True):
                for one, text in zip(several, kept, strict=True):
                    one.harmless = _sigmoid(self.sign * scores[text])

    def choose(self, candidates: list[Candidate], guard: bool = True) -> Candidate | None:
        """Set the fate of each candidate, and return the chosen one; None if no candidate is left."""
        limit = _sigmoid(self.threshold)
        for one in candidates:
            flagged = guard and one.harmless is not None and one.harmless < limit
            one.fate = EMPTY if not one.text else FLAGGED if flagged else UNCHOSEN
        left = [one for one in candidates if one.fate == UNCHOSEN]
        best = max(left, key=lambda one: one.reward or 0.0, default=None)  # the first of equal ones
        if best:
            best.fate = CHOSEN
        return best


def language_of(path: str) -> str | None:
    """The language that a local model's card names; None if it names none, or cannot be read (with a notice)."""
    folder = Path(locate(path)).expanduser()
    for card in (folder / "README.md", folder / "export" / "README.md"):
        if card.is_file():
            try:
                language = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("language")
            except Exception as error:  # a card is a text of others, and any part of YAML
                report_skipped(card, error)
                return None
            return language if isinstance(language, str) else None
    return None


def purpose_of(export: Path) -> str:
    """What an export is for: chat, reward or toxicity."""
    config, _ = load_config(str(export), vocab_size=0, architecture=None, head="score")
    return {None: "chat", "harmless": "toxicity"}.get(score_label(config), "reward")


def _check(**values: Any) -> None:
    """Each value is one that its key in conf/chat.yaml may have."""
    for key, value in values.items():
        check_value(Answering, key, value, {})


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0


def _score_texts(scorer: ScoringModel, asked: Sequence[tuple[list[Message], list[str]]]) -> list[dict[str, float]]:
    """The score of each text to each conversation, whose texts are one tree; without a conversation, of texts alone.

    Where a scorer has no room for a conversation, it reads its last message alone.
    """
    trees: list[Tree] = []
    owners: list[list[tuple[int, list[str]]]] = []  # of each conversation, the trees that its texts went into
    for conversation, texts in asked:
        parts: list[tuple[int, list[str]]] = []
        whole = [texts] if conversation else [[text] for text in texts]
        for shown in (conversation, conversation[-1:]):
            try:
                new = [
                    scorer.encode([[*shown, {"role": "assistant", "content": text}] for text in one]) for one in whole
                ]
                break
            except BadRow as problem:
                why = problem
                whole = [[text] for text in texts]
        else:
            raise AiraError(f"The message is too long for a scorer: {why}.")
        for tree, one in zip(new, whole, strict=True):
            parts.append((len(trees), one))
            trees.append(tree)
        owners.append(parts)
    scores = scorer.score(trees)
    return [
        {text: score for i, texts in parts for text, score in zip(texts, scores[i], strict=True)} for parts in owners
    ]
