"""Supervised fine-tuning: TRL's SFTTrainer and Aira on the same work.

    python benchmarks/sft.py [--dtype float32 bf16] [--contenders trl trl-best aira] [--quick]

Same SmolLM2-135M-Instruct weights, rows of ``alpaca_en_demo.jsonl`` in file order with the model's
chat template, loss on the completion only, 8 examples per optimizer step, truncation at 1024 tokens,
AdamW at a constant 2e-5 without weight decay, gradients clipped to norm 1, and precision: float32, or
bf16 autocast over float32 weights where the CPU computes bf16 natively. Every contender runs in a
process of its own; ``common`` describes what is measured and how.

- ``trl``: SFTConfig's defaults. Set are only the batch size, the constant learning rate, the number
  of steps, the order of the rows, the precision, the CPU, and no checkpoints.
- ``trl-best``: settings meant to be TRL's fastest on a CPU among those that compute the same loss: no
  gradient checkpointing, and the batch flattened into one row without padding. (Packing regroups
  examples, and ``wrapped`` packing lets them see each other; ``torch.compile`` was not tried.)
- ``aira``: Aira's defaults, but for rows of 512 tokens, which take less memory.

The rows come from the folder in ``AIRA_DATA``, by default ``../shared/data`` beside the repository.
``--quick`` is a smoke test on a tiny random model and made-up rows.
"""

import json
from typing import Any

import torch
from common import Meter
from study import DATA, Arguments, made_up, main, run_aira, steps_of, trl_settings, turn


def rows_of(arguments: Arguments) -> list[dict[str, Any]]:
    """Rows {prompt, completion}, each a list of chat messages."""
    count = steps_of(arguments) * arguments.batch_size
    if arguments.quick:
        pairs = [(prompt, answer) for prompt, answer, _ in made_up(count)]
    else:
        lines = (DATA / "alpaca_en_demo.jsonl").read_text(encoding="utf-8").splitlines()
        if len(lines) < count:
            raise SystemExit(f"{count} rows are needed, {len(lines)} are there")
        rows = [json.loads(line) for line in lines[:count]]
        pairs = [(f"{r['instruction']}\n{r['input']}".rstrip(), r["output"]) for r in rows]
    return [{"prompt": turn("user", asked), "completion": turn("assistant", said)} for asked, said in pairs]


def trl(arguments: Arguments, meter: Meter) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class MeteredTrainer(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
            scored = int((inputs["labels"][:, 1:] != -100).sum())
            if "position_ids" in inputs:
                counts = (inputs["input_ids"].numel(), scored, int((inputs["position_ids"] == 0).sum()))
            else:
                counts = (int(inputs["attention_mask"].sum()), scored, len(inputs["input_ids"]))
            loss = super().training_step(model, inputs, *rest)
            self.measured = (loss.item(), *counts)
            return loss

    class Step(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step(*trainer.measured)

    best = arguments.child == "trl-best"
    config = SFTConfig(**trl_settings(arguments), **({"gradient_checkpointing": False} if best else {}))
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    trainer = MeteredTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(rows_of(arguments)),
        processing_class=AutoTokenizer.from_pretrained(arguments.folder),
        callbacks=[Step()],
    )
    if best:
        pad = trainer.processing_class.pad_token_id
        trainer.data_collator = DataCollatorForLanguageModeling(pad, padding_free=True)
    meter.attach(model)
    trainer.train()


def aira(arguments: Arguments, meter: Meter) -> None:
    from aira.methods.sft import SFT

    rows = [{"conversations": row["prompt"] + row["completion"]} for row in rows_of(arguments)]
    run_aira(arguments, meter, rows, "instruction", lambda *given, tokenizer, cache: SFT(*given))


if __name__ == "__main__":
    main(__file__, __doc__, {"trl": trl, "trl-best": trl, "aira": aira}, batch_size=8)
