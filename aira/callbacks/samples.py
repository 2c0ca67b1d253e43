"""The model's answers while it is trained, and how many training and held-out prompts it answers exactly."""

from typing import Any

import pytorch_lightning as pl
from torch import nn

from aira.data.module import DataModule, Split
from aira.files import append_lines, as_json
from aira.inference.generation import answer
from aira.parts import Part, RunEnd, RunStart, log_table


class Samples(pl.Callback, Part):
    """Answers fixed questions every n steps, and counts exact answers at the end; see samples.jsonl and the loggers.

    Args:
        questions: the questions.
        every_n_steps: optimizer steps between two rounds.
        max_new_tokens: the length limit of an answer.
        exact_match: how many training and how many held-out prompts are answered at the end; 0 for none.
    """

    head = "lm"

    def __init__(self, questions: list[str], every_n_steps: int, max_new_tokens: int, exact_match: int) -> None:
        self.questions, self.every_n_steps = questions, every_n_steps
        self.max_new_tokens, self.limit = max_new_tokens, exact_match
        self.answers: list[tuple[str, str]] = []
        self.exact: dict[str, tuple[float, int]] = {}

    def begin(self, run: RunStart) -> "Samples":
        """Take the folder and the tokenizer of the run."""
        assert run.tokenizer is not None  # a training run has one
        self.folder, self.tokenizer = run.folder, run.tokenizer
        return self

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Answer the questions every n steps."""
        if trainer.global_step % self.every_n_steps == 0:
            model = module.whole_model()  # type: ignore[operator]
            if trainer.is_global_zero:
                self._ask(model, f"at step {trainer.global_step}", trainer.loggers, trainer.global_step)

    def finish(self, run: RunEnd) -> dict[str, float]:
        """Answer the questions a last time, and count exact answers on both splits.

        Returns:
            `exact_match/train` and `exact_match/val`, fractions; nothing if `exact_match` is 0.
        """
        self._ask(run.model, "at the end", run.trainer.loggers, run.trainer.global_step)
        if self.limit:
            print("\nCounting exact answers to training and held-out prompts …", flush=True)
            for name, split in (("train", run.data.train), ("val", run.data.validation)):
                self.exact[name] = self._exact_match(run.model, run.data, split)
        return {f"exact_match/{name}": rate for name, (rate, _) in self.exact.items()}

    def summary(self) -> list[str]:
        """The fractions of exact answers, and one answer."""
        names = {"train": "training prompts", "val": "held-out paraphrases"}
        lines = [
            f"  exact answers to {names[name]:20} {rate:.2f} of {number}" for name, (rate, number) in self.exact.items()
        ]
        return [*lines, *(f"\nQuestion: {question}\nAnswer:   {text}" for question, text in self.answers[:1])]

    def _ask(self, model: nn.Module, when: str, loggers: list[Any], step: int) -> None:
        conversations = [[{"role": "user", "content": question}] for question in self.questions]
        answers = answer(model, self.tokenizer, conversations, self.max_new_tokens)
        self.answers = [(question, text) for question, (text,) in zip(self.questions, answers, strict=True)]
        print("\n".join([f"\nAnswers {when}:", *(f"  {question}\n    {text}" for question, text in self.answers)]))
        rows = ({"step": step, "question": question, "answer": text} for question, text in self.answers)
        append_lines(self.folder / "samples.jsonl", (as_json(row, ensure_ascii=False) for row in rows))
        log_table(loggers, "samples", ["question", "answer"], [list(pair) for pair in self.answers], step)

    def _exact_match(self, model: nn.Module, data: DataModule, split: Split) -> tuple[float, int]:
        """The fraction of a split's first rows whose answer equals the completion, and their number.

        Rows that were cut to data.max_length are left out, since the model has not seen their whole completion.
        """
        rows = split.index[~split.cut][: self.limit]
        if not len(rows):
            return 0.0, 0
        conversations = [example.conversations[0] for example in data.examples(split, rows)]
        prompts = [messages[:-1] for messages in conversations]
        longest = max(len(self.tokenizer.encode(messages[-1]["content"])) for messages in conversations)
        answers = answer(model, self.tokenizer, prompts, longest + 1)
        exact = sum(text == messages[-1]["content"].strip() for (text,), messages in zip(answers, conversations))
        return exact / len(conversations), len(conversations)
