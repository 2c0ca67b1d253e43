"""What the values of conf/ may be: choices, ranges of numbers, and what is no setting at all."""

import functools
import math
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from aira.errors import AiraError

CHOICES: dict[str, tuple[str | None, ...]] = {
    "method.loss": (
        *("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "apo_zero", "apo_down", "simpo", "orpo"),
    ),
    "callbacks.checkpoint.mode": ("min", "max"),
    "method.mode": ("min", "max"),
    "method.loss_on": ("completion", "all"),
    "method.objective": ("classification", "pairwise"),
    "method.threshold_by": ("accuracy", "balanced_accuracy", "f1"),
    "guard.high_score": (None, "harmless", "toxic"),
    "guard.reads": ("answer", "exchange"),
    "eval.high_score": (None, "harmless", "toxic"),
    "eval.precision": ("32-true", "bf16-mixed"),
    "model.attn_implementation": ("trees", "sdpa"),
    "model.template": ("aira", "native"),
    "sweep.mode": ("min", "max"),
    "sweep.search": ("bayes", "random", "grid"),
    "schedule.name": ("cosine", "linear", "constant"),
    "trainer.precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "export": ("last", "best"),
}


class Range(NamedTuple):
    """What a number may be; NaN and infinity are in none."""

    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()  # ends that are outside, or a number between them
    whole_above: float = math.inf  # a number above this is a count, and so whole

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        whole = isinstance(value, int) or value <= self.whole_above
        return whole and self.low <= value <= self.high and value not in self.without

    def __str__(self) -> str:
        if len(self.without) == 2:
            bounds = [f"between {self.low:g} and {self.high:g}"]
        else:
            low = f"above {self.low:g}" if self.low in self.without else f"of at least {self.low:g}"
            high = f"below {self.high:g}" if self.high in self.without else f"at most {self.high:.10g}"
            bounds = [low] * math.isfinite(self.low) + [high] * math.isfinite(self.high)
        bounds += [f"not {value:g}" for value in self.without if value not in (self.low, self.high)]
        fraction = f"; above {self.whole_above:g} it is a count, and so whole"
        kind = "a whole number" if self.whole_above < 0 else "a number"
        return " ".join([kind, " and ".join(bounds)]).rstrip() + fraction * (0 <= self.whole_above < math.inf)


ANY = Range()
FROM_0, ABOVE_0 = Range(0), Range(0, without=(0,))
COUNT, COUNT_OR_0 = Range(1, whole_above=-1), Range(0, whole_above=-1)
LENGTH = Range(2, whole_above=-1)
PROBABILITY, BELOW_1, BETWEEN = Range(0, 1), Range(0, 1, (1,)), Range(0, 1, (0, 1))
RANGES: dict[str, Range] = {
    "callbacks.checkpoint.every_n_train_steps": COUNT,
    "callbacks.samples.every_n_steps": COUNT,
    "callbacks.samples.exact_match": COUNT_OR_0,
    "callbacks.samples.max_new_tokens": COUNT,
    "callbacks.scores.count": COUNT,
    "data.batch_size": COUNT,
    "data.max_examples": COUNT,
    "data.max_length": LENGTH,
    "data.num_proc": COUNT,
    "data.num_workers": COUNT_OR_0,
    "data.tokens_per_row": COUNT,
    "data.validation_fraction": BETWEEN,
    "demo.max_characters": COUNT,
    "demo.max_waiting": COUNT,
    "demo.port": Range(0, 65535, whole_above=-1),
    "eval.limit": COUNT,
    "eval.max_length": LENGTH,
    "eval.num_fewshot.*": COUNT_OR_0,
    "eval.tokens_per_row": COUNT,
    "guard.threshold": BETWEEN,
    "guard.threshold_logit": ANY,
    "max_new_tokens": COUNT,
    "max_prompts": COUNT,
    "method.beta": ABOVE_0,
    "method.center_rewards_coefficient": FROM_0,
    "method.gamma": FROM_0,
    "method.label_smoothing": Range(0, 0.5, (0.5,)),
    "method.lr": FROM_0,
    "method.sft_weight": FROM_0,
    "min_margin": FROM_0,
    **{f"model.config.{name}": COUNT for name in ("n_*", "num_*", "*_size", "*_dim", "max_position_embeddings")},
    "model.dropout": BELOW_1,
    "model.epochs.*": COUNT,
    "model.exact_match.*": COUNT_OR_0,
    "model.lora.alpha": ABOVE_0,
    "model.lora.dropout": BELOW_1,
    "model.lora.r": COUNT_OR_0,
    "model.lr.*": FROM_0,
    "model.max_length": LENGTH,
    "n": COUNT,
    "optimizer.eps": FROM_0,
    "optimizer.lr": FROM_0,
    "optimizer.max_grad_norm": FROM_0,
    "optimizer.weight_decay": FROM_0,
    "pipeline.stages.*.minutes": FROM_0,
    "prompts_per_part": COUNT,
    "repetition_penalty": Range(0.01, 100),
    "schedule.warmup": Range(0, whole_above=1),
    "seed": Range(0, 2**32 - 1, whole_above=-1),
    "sweep.trials": COUNT,
    "temperature": FROM_0,
    "tokens_per_row": COUNT,
    "top_k": COUNT_OR_0,
    "top_p": PROBABILITY,
    "trainer.limit_val_batches": Range(0, whole_above=1),
    "trainer.log_every_n_steps": COUNT,
    "trainer.max_epochs": COUNT,
    "trainer.max_steps": Range(-1, without=(0,), whole_above=-2),
    "trainer.num_nodes": COUNT,
    "trainer.val_check_interval": Range(0, without=(0,), whole_above=1),
}
"""What the numbers may be; * stands for any name. One that is null by default may stay so."""

TEXTS = (
    *("ckpt_path", "prompt", "input", "output", "default_message", "title", "entity", "logger.wandb.group"),
    *("data.revision", "model.revision", "method.reference", "eval.data_dir"),
)
"""Keys of text that are null by default."""

FACTS = {
    "method.name": "method=<name> chooses a method",
    "method.kind": "method= and, of method=toxicity, method.objective= choose the kind of data",
    "method.kinds": "method.objective= chooses the kind of data",
    "method.role": "model= chooses a model, and with it the kind of backbone",
    "method.head": "method= chooses what the model computes",
    "method.label": "method= chooses what a score means",
    "model.name": "model=<name> chooses a model, and hydra.run.dir=<folder> names a run's folder",
    "model.role": "model= chooses a model, such as bert-base for an encoder; model.path= is its weights",
    "callbacks.samples.head": "~callbacks.samples leaves it out",
    "callbacks.scores.head": "~callbacks.scores leaves it out",
    "trainer.strategy.save_distributed_checkpoint": "a checkpoint is one file, whatever the trainer",
    "_target_": "the option of its group chooses it",
}
"""What is so by the code, and what to set instead; the last part of a key is enough where it has no dots."""

NO_FP16 = (
    "a CPU has no such autocast. Set trainer.precision=bf16-mixed, or 32-true.",
    "trainer=fsdp does not scale losses, which float16 needs. Set trainer.precision=bf16-mixed, or 32-true.",
)
"""What is wrong with float16: on a CPU, and where weights are sharded."""


@functools.cache
def range_of(key: str) -> Range | None:
    """What the number of a key may be; None where it is none, or may be any."""
    return next((allowed for pattern, allowed in RANGES.items() if fnmatchcase(key, pattern)), None)


def check_number(key: str, value: Any) -> None:
    """Refuse a number that is out of a key's range; null is in any."""
    allowed = range_of(key) or (ANY if isinstance(value, float) else None)
    if allowed and value is not None and value not in allowed:
        raise AiraError(f"{key}={value}: it must be {allowed}.")


def check_choice(key: str, value: Any) -> None:
    """Refuse a value that is none of a key's choices."""
    if key in CHOICES and value not in CHOICES[key] and "${" not in str(value):
        raise AiraError(f"{key}={value}: valid are {', '.join(map(str, CHOICES[key]))}.")
