"""The model's answers while it is trained, and how many training and held-out prompts it answers exactly."""

from typing import Any

import pytorch_lightning as pl
from torch import nn

from aira.data.module import DataModule, Split
from aira.files import add_lines, as_json
from aira.inference.generation import answer
from aira.parts import Begun, Finished, Part, log_table


class Samples(pl.Callback, Part):
    """Answers fixed questions every n steps, to the console, samples.jsonl and loggers; at the end counts exact ones.

    Args:
        questions: what is asked.
        every_n_steps: optimizer steps between two rounds.
        max_new_tokens: the longest answer.
        exact_match: how many training and how many held-out prompts are answered at the end; 0 for none.
    """

    head = "lm"

    def __init__(self, questions: list[str], every_n_steps: int, max_new_tokens: int, exact_match: int) -> None:
        self.questions, self.every_n_steps = questions, every_n_steps
        self.max_new_tokens, self.limit = max_new_tokens, exact_match
        self.answers: list[tuple[str, str]] = []
        self.exact: dict[str, tuple[float, int]] = {}

    def begin(self, run: Begun) -> "Samples":
        """Know where to write, and how to ask."""
        assert run.tokenizer is not None  # of the model that is trained
        self.folder, self.tokenizer = run.folder, run.tokenizer
        return self

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Ask every n steps."""
        if trainer.global_step % self.every_n_steps == 0:
            model = module.whole_model()  # type: ignore[operator]
            if trainer.is_global_zero:
                self._ask(model, f"at step {trainer.global_step}", trainer.loggers, trainer.global_step)

    def finish(self, run: Finished) -> dict[str, float]:
        """Ask a last time, and count exact answers of both splits.

        Returns:
            `exact_match/train` and `exact_match/val`, fractions; nothing where `exact_match` is 0.
        """
        self._ask(run.model, "at the end", run.trainer.loggers, run.trainer.global_step)
        if self.limit:
            print("\nCounting exact answers to training and held-out prompts …", flush=True)
            for name, split in (("train", run.data.train), ("val", run.data.validation)):
                self.exact[name] = self._exact_match(run.model, run.data, split)
        return {f"exact_match/{name}": rate for name, (rate, _) in self.exact.items()}

    def summary(self) -> list[str]:
        """How many answers were exact, and one of them."""
        names = {"train": "training prompts", "val": "held-out paraphrases"}
        lines = [
            f"  exact answers to {names[name]:20} {rate:.2f} of {number}" for name, (rate, number) in self.exact.items()
        ]
        return [*lines, *(f"\nQuestion: {question}\nAnswer:   {text}" for question, text in self.answers[:1])]

    def _ask(self, model: nn.Module, when: str, loggers: list[Any], step: int) -> None:
        asked = [[{"role": "user", "content": question}] for question in self.questions]
        answers = answer(model, self.tokenizer, asked, self.max_new_tokens)
        self.answers = [(question, text) for question, (text,) in zip(self.questions, answers, strict=True)]
        print("\n".join([f"\nAnswers {when}:", *(f"  {question}\n    {text}" for question, text in self.answers)]))
        rows = ({"step": step, "question": question, "answer": text} for question, text in self.answers)
        add_lines(self.folder / "samples.jsonl", (as_json(row, ensure_ascii=False) for row in rows))
        log_table(loggers, "samples", ["question", "answer"], [list(pair) for pair in self.answers], step)

    def _exact_match(self, model: nn.Module, data: DataModule, split: Split) -> tuple[float, int]:
        """The fraction of a split's first rows whose answer is the completion, letter for letter, and their number.

        Rows that were cut to data.max_length are left out: their completion was not learnt as a whole.
        """
        whole = split.index[~split.cut][: self.limit]
        if not len(whole):
            return 0.0, 0
        conversations = [example.conversations[0] for example in data.examples(split, whole)]
        asked = [messages[:-1] for messages in conversations]
        longest = max(len(self.tokenizer.encode(messages[-1]["content"])) for messages in conversations)
        answers = answer(model, self.tokenizer, asked, longest + 1)
        right = sum(text == messages[-1]["content"].strip() for (text,), messages in zip(answers, conversations))
        return right / len(conversations), len(conversations)
