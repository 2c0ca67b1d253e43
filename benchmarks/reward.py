"""Reward modelling: TRL's RewardTrainer and Aira on the same work.

    python benchmarks/reward.py [--dtype float32 bf16] [--contenders trl trl-best aira] [--quick]

SmolLM2-135M-Instruct's weights with one and the same new score head, the first dialogues of
``hh_rlhf_harmless_base_test.jsonl`` in file order with the model's chat template, 4 pairs per
optimizer step, and all else as in ``sft``. A token of the prompt counts once for each of its two
responses.

- ``trl``: RewardConfig's defaults.
- ``trl-best``: the same without gradient checkpointing.
- ``aira``: Aira's defaults, but for rows of 512 tokens.
"""

from typing import Any

import torch
from common import Meter
from pairs import pairs_of
from study import Arguments, main, run_aira, trl_settings


def trl(arguments: Arguments, meter: Meter) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    class MeteredTrainer(RewardTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
            tokens = int(inputs["attention_mask"].sum())
            loss = super().training_step(model, inputs, *rest)
            margin = self._metrics["train"]["margin"][-1]
            self.measured = (loss.item(), tokens, 0, len(inputs["input_ids"]) // 2, margin)
            return loss

    class Step(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step(*trainer.measured)

    best = arguments.child == "trl-best"
    config = RewardConfig(**trl_settings(arguments), **({"gradient_checkpointing": False} if best else {}))
    model = AutoModelForSequenceClassification.from_pretrained(arguments.folder, dtype=torch.float32)
    trainer = MeteredTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(pairs_of(arguments)),
        processing_class=AutoTokenizer.from_pretrained(arguments.folder),
        callbacks=[Step()],
    )
    meter.attach(model)
    trainer.train()


def aira(arguments: Arguments, meter: Meter) -> None:
    from aira.methods.reward import Reward

    def make(*given: Any, tokenizer: Any, cache: str) -> Reward:
        return Reward(*given)

    run_aira(arguments, meter, pairs_of(arguments), "preference", make, head="score")


if __name__ == "__main__":
    main(__file__, __doc__, {"trl": trl, "trl-best": trl, "aira": aira}, batch_size=4, scorer=True)
