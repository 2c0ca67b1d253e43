"""Answers of a language model: greedy or sampled, many prompts at once, without a change of the random state."""

from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from aira.data.control import as_text
from aira.data.rendering import prompt_text
from aira.data.texts import BadRow
from aira.data.turns import Message
from aira.errors import AiraError
from aira.models.families import context_length
from aira.models.forward import unwrap
from aira.models.loading import as_list

GENERATION_BATCH = 64
"""Answers that are generated at once."""

PADDED = {"temperature", "top_k", "top_p"}
"""Settings of the sampling that padding does not change: they look at scores alone."""


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """The tokens of a conversation for the model to continue; control tokens in a message are plain text.

    Raises:
        AiraError: the chat template refuses the conversation, or makes nothing of it; or a message is no text.
    """
    try:
        "".join(one["content"] for one in messages).encode()
    except UnicodeEncodeError as error:
        raise AiraError("A message has half of a character (a surrogate that stands alone), and is no text.") from error
    reader, messages = as_text(tokenizer, messages)
    try:
        text = prompt_text(reader, messages)
    except BadRow as error:
        raise AiraError(f"{tokenizer.name_or_path} cannot be asked: {error}.") from error
    ids: list[int] = reader(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise AiraError(f"{tokenizer.name_or_path}: its chat template makes nothing of the conversation.")
    return ids


def fits(model: Any, tokenizer: PreTrainedTokenizerBase, message: str) -> bool:
    """Whether the model's context has room for a message and the beginning of an answer."""
    return len(prompt_ids(tokenizer, [{"role": "user", "content": message}])) < context_length(unwrap(model).config)


def check_logits(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A processor of logits, for `generate`, that changes nothing: greedy decoding would take NaN for the best token.

    It raises an AiraError where a row has NaN or +inf, or -inf alone; -inf is a token that cannot be.
    """

    def check(_: Tensor, logits: Tensor) -> Tensor:
        if not logits.logsumexp(-1).isfinite().all():
            raise AiraError(
                f"{model.name_or_path} cannot answer: its logits are NaN or infinite. Its weights, or the precision "
                "that it runs in, are to blame: train it again, or take another checkpoint."
            )
        return logits

    return check


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[Message]],
    max_new_tokens: int,
    n: int = 1,
    seed: int = 0,
    **sampling: Any,
) -> list[list[str]]:
    """Answer each conversation; neither the training mode nor the random state is changed.

    Args:
        conversations: each ends with the user's turn.
        max_new_tokens: the longest answer; a prompt near the end of the context leaves room for less.
        n: answers to each.
        seed: of the sampling. Answers depend on what else is asked in the same call.
        sampling: arguments of `generate`, such as `top_k`; without `temperature`, answers are greedy. With one that
            is not in `PADDED`, only prompts of one length are answered at once, so that it finds no padding among the
            earlier tokens, such as `no_repeat_ngram_size` looks at.

    Returns:
        For each conversation its `n` answers, up to the first end token and without special tokens. A greedy one does
        not depend on what else is asked.

    Raises:
        AiraError: a prompt is longer than the model's context, or the model's logits are no numbers.
    """
    prompts = [prompt_ids(tokenizer, messages) for messages in conversations]
    network = unwrap(model)
    context = context_length(network.config)
    for messages, prompt in zip(conversations, prompts, strict=True):
        if len(prompt) >= context:
            raise AiraError(
                f"The prompt {messages[-1]['content'][:60]!r}… has {len(prompt)} tokens; "
                f"the model's context is {context}. Shorten it."
            )
    training, device = network.training, next(network.parameters()).device
    network.eval()
    answers: list[list[str]] = [[] for _ in prompts]
    # before 5.23 Transformers takes padding for words that were said; a penalty of 1 is none
    alike = bool({name for name, value in sampling.items() if (name, value) != ("repetition_penalty", 1)} - PADDED)

    def together(i: int) -> tuple[int, int]:
        """What prompts of a batch have in common: the room for an answer, and their length where it matters."""
        length = len(prompts[i])
        return min(max_new_tokens, context - length), length if alike else 0

    portion = max(1, GENERATION_BATCH // n)
    ends = set(as_list(network.generation_config.eos_token_id))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for (room, _), several in groupby(sorted(range(len(prompts)), key=lambda i: len(prompts[i])), key=together):
            order = list(several)
            for start in range(0, len(order), portion):
                chosen = order[start : start + portion]
                padded = tokenizer.pad(
                    {"input_ids": [prompts[i] for i in chosen]}, padding_side="left", return_tensors="pt"
                ).to(device)
                length = padded["input_ids"].shape[1]
                output = network.generate(
                    input_ids=padded["input_ids"],
                    attention_mask=padded["attention_mask"],
                    do_sample="temperature" in sampling,
                    num_return_sequences=n,
                    max_new_tokens=room,
                    use_cache=True,
                    logits_processor=[check_logits(network)],
                    **sampling,
                )
                answer_ids = [
                    list(takewhile(lambda token: token not in ends, ids)) for ids in output[:, length:].tolist()
                ]
                texts = tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
                for k, i in enumerate(chosen):
                    answers[i] = [text.strip() for text in texts[k * n : (k + 1) * n]]
    network.train(training)
    return answers
