"""Direct preference optimization: TRL's DPOTrainer and Aira on the same work.

    python benchmarks/dpo.py [--dtype float32 bf16] [--contenders trl trl-cached trl-best aira] [--quick]

Same SmolLM2-135M-Instruct weights, the first dialogues of ``hh_rlhf_harmless_base_test.jsonl`` in file
order with the model's chat template, the sigmoid loss at beta 0.1, 4 pairs per optimizer step, and
all else as in ``sft``. A token of the prompt counts once for each of its two responses.

- ``trl``: DPOConfig's defaults, with the reference model run at every step.
- ``trl-cached``: the same with ``precompute_ref_log_probs=True``.
- ``trl-best``: the same without gradient checkpointing, too.
- ``aira``: Aira's defaults, but for rows of 512 tokens. The reference's log-probs are computed before
  the first step.

"with cache" counts the time of computing the reference's log-probs in.
"""

import time
from typing import Any

import torch
from common import Meter
from pairs import pairs_of
from study import Arguments, main, run_aira, trl_settings


def trl(arguments: Arguments, meter: Meter) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class MeteredTrainer(DPOTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
            tokens, scored = int(inputs["attention_mask"].sum()), int(inputs["completion_mask"][:, 1:].sum())
            loss = super().training_step(model, inputs, *rest)
            margin = self._metrics["train"]["rewards/margins"][-1]
            self.measured = (loss.item(), tokens, scored, len(inputs["input_ids"]) // 2, margin)
            return loss

        def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            found = super()._precompute_ref_logps(*given, **named)
            meter.prepared += time.perf_counter() - start
            return found

    class Step(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step(*trainer.measured)

    cached, best = arguments.child != "trl", arguments.child == "trl-best"
    config = DPOConfig(
        **trl_settings(arguments),
        **({"precompute_ref_log_probs": True} if cached else {}),
        **({"gradient_checkpointing": False} if best else {}),
    )
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    trainer = MeteredTrainer(
        model,
        AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32),
        config,
        train_dataset=Dataset.from_list(pairs_of(arguments)),
        processing_class=AutoTokenizer.from_pretrained(arguments.folder),
        callbacks=[Step()],
    )
    meter.attach(model)
    trainer.train()


def aira(arguments: Arguments, meter: Meter) -> None:
    from aira.methods.dpo import DPO

    class TimedDPO(DPO):
        def setup(self, stage: str) -> None:
            start = time.perf_counter()
            super().setup(stage)
            meter.prepared += time.perf_counter() - start

    def make(*given: Any, tokenizer: Any, cache: str) -> DPO:
        return TimedDPO(*given, tokenizer=tokenizer, cache_dir=cache)

    run_aira(arguments, meter, pairs_of(arguments), "preference", make)


if __name__ == "__main__":
    main(__file__, __doc__, {"trl": trl, "trl-cached": trl, "trl-best": trl, "aira": aira}, batch_size=4)
