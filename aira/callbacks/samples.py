"""The model's answers while it is trained, and how many training and held-out prompts it answers exactly."""

from typing import Any

import pytorch_lightning as pl
import torch
from transformers import PreTrainedTokenizerBase

from aira.data.module import DataModule, Split
from aira.data.schemas import Message
from aira.errors import AiraError
from aira.models.backbone import context_length, unwrap

GENERATION_BATCH = 64


@torch.no_grad()
def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[Message]],
    max_new_tokens: int,
) -> list[str]:
    """Answer each conversation greedily; neither the training mode nor the random state is changed.

    Raises:
        AiraError: a prompt is longer than the model's context.
    """
    prompts = [
        tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        for messages in conversations
    ]
    network = unwrap(model)
    context = context_length(network.config)
    for messages, prompt in zip(conversations, prompts, strict=True):
        if len(prompt) >= context:
            raise AiraError(
                f"The prompt {messages[-1]['content'][:60]!r}… has {len(prompt)} tokens; "
                f"the model's context is {context}."
            )
    training, device = network.training, next(network.parameters()).device
    network.eval()
    answers: list[str] = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with torch.random.fork_rng():
        for start in range(0, len(order), GENERATION_BATCH):
            chosen = order[start : start + GENERATION_BATCH]
            padded = tokenizer.pad(
                {"input_ids": [prompts[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(device)
            room = context - padded["input_ids"].shape[1]
            output = network.generate(
                input_ids=padded["input_ids"],
                attention_mask=padded["attention_mask"],
                do_sample=False,
                max_new_tokens=min(max_new_tokens, room),
                use_cache=True,
            )
            for i, tokens in zip(chosen, output[:, padded["input_ids"].shape[1] :], strict=True):
                answers[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    network.train(training)
    return answers


class Samples(pl.Callback):
    """Answers fixed questions every n steps, to the console and the logger, and at the end counts exact answers.

    Args:
        tokenizer: of the model that is trained.
        questions: what is asked.
        every_n_steps: optimizer steps between two rounds.
        max_new_tokens: the longest answer.
        exact_match: how many training and how many held-out prompts are answered at the end; 0 for none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: list[str],
        every_n_steps: int,
        max_new_tokens: int,
        exact_match: int,
    ) -> None:
        self.tokenizer, self.questions, self.every_n_steps = tokenizer, questions, every_n_steps
        self.max_new_tokens, self.limit = max_new_tokens, exact_match
        self.answers: list[tuple[str, str]] = []
        self.exact: dict[str, tuple[float, int]] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Ask every n steps."""
        if trainer.is_global_zero and trainer.global_step % self.every_n_steps == 0:
            self._ask(module, f"at step {trainer.global_step}", trainer.loggers, trainer.global_step)

    def finish(self, module: pl.LightningModule, data: DataModule) -> dict[str, float]:
        """Ask a last time, and count exact answers of both splits.

        Returns:
            `exact_match/train` and `exact_match/val`, fractions; nothing where `exact_match` is 0.
        """
        self._ask(module, "at the end", [])
        if self.limit:
            for name, split in (("train", data.train), ("val", data.validation)):
                self.exact[name] = self._exact_match(module, data, split)
        return {f"exact_match/{name}": rate for name, (rate, _) in self.exact.items()}

    def _ask(self, module: pl.LightningModule, when: str, loggers: list[Any], step: int | None = None) -> None:
        asked = [[{"role": "user", "content": question}] for question in self.questions]
        said = answer(module.model, self.tokenizer, asked, self.max_new_tokens)  # type: ignore[arg-type]
        self.answers = list(zip(self.questions, said, strict=True))
        print("\n".join([f"\nAnswers {when}:", *(f"  {question}\n    {text}" for question, text in self.answers)]))
        for logger in loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("samples", ["question", "answer"], [list(pair) for pair in self.answers], step=step)

    def _exact_match(self, module: pl.LightningModule, data: DataModule, split: Split) -> tuple[float, int]:
        """The fraction of a split's first rows whose answer is the completion, letter for letter, and their number."""
        conversations = [example.conversations[0] for example in data.examples(split, split.index[: self.limit])]
        asked = [messages[:-1] for messages in conversations]
        longest = max(len(self.tokenizer.encode(messages[-1]["content"])) for messages in conversations)
        said = answer(module.model, self.tokenizer, asked, longest + 1)
        right = sum(text == messages[-1]["content"].strip() for text, messages in zip(said, conversations, strict=True))
        return right / len(conversations), len(conversations)
