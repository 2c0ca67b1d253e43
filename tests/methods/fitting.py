"""Training a small model in the test's own process, on rows in the order of their file."""

import json

import pytorch_lightning as pl
from transformers import TrainerCallback

from aira.config.schema import Optimizer, Schedule
from aira.data.module import DataModule

OPTIMIZER = Optimizer(
    name="adamw", lr=1e-3, weight_decay=0.0, betas=[0.9, 0.999], eps=1e-8, momentum=0.95, max_grad_norm=1.0
)
CONSTANT = Schedule(name="constant", warmup=0, min_lr=0.0, decay=0.1, power=1.0)


class InFileOrder(DataModule):
    def train_dataloader(self):
        return self._loader(self.train, steps=self.trainer.max_steps, start=0, shuffle=False)


class Recorder(pl.Callback):
    """Keeps what is logged at each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def values(self, name):
        return [step[f"train/{name}"] for step in self.steps]


def write(folder, rows, validation=None):
    """A folder of a training and a validation file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows), ("validation", validation or rows[:1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return str(folder)


def fit(
    module,
    tokenizer,
    path,
    cache,
    kind,
    *,
    steps=3,
    batch_size=4,
    precision="32-true",
    validate=False,
    recorder=None,
    shuffled=False,
    callbacks=(),
    every=None,
    strategy="auto",
    devices=1,
    num_nodes=1,
    **settings,
):
    """Train for a few steps.

    Returns:
        The recorder, the trainer (with the metrics of the validation after the last step), and the data.
    """
    settings = {"max_length": 256, "cache_dir": str(cache / "cache"), **settings}
    data = (DataModule if shuffled else InFileOrder)(tokenizer, kind=kind, path=path, batch_size=batch_size, **settings)
    recorder = recorder or Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        max_epochs=1,
        max_steps=steps,
        val_check_interval=every or steps,
        limit_val_batches=1.0 if validate else 0,
        callbacks=[*callbacks, recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=str(cache),
    )
    trainer.fit(module, datamodule=data)
    return recorder, trainer, data


TRL = {
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "learning_rate": OPTIMIZER.lr,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "disable_dropout": True,
}
"""What TRL's trainers are set to for the same training."""


class Log(TrainerCallback):
    """Keeps what TRL logs at each step."""

    def __init__(self):
        self.steps = []

    def on_log(self, *_, logs, **__):
        self.steps.append(logs)
