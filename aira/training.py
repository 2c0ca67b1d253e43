"""A training run from its configuration to its export: the whole story on one page."""

import contextlib
import inspect
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from aira.callbacks.checkpoint import changed_settings, check_shapes, measured, read_state
from aira.callbacks.progress import Progress
from aira.callbacks.signals import Signals
from aira.config.bounds import NO_FP16
from aira.config.compose import build
from aira.config.record import plain, recorded, write_config
from aira.data.module import DataModule
from aira.data.tokenize import tokenizer_content
from aira.environment import environment
from aira.errors import AiraError, reason_of
from aira.files import as_json, shown, typed, without_home, write_whole
from aira.folders import identity
from aira.models.export import export, model_card
from aira.models.families import context_length
from aira.models.loading import end_tokens, load_config, load_model, load_tokenizer
from aira.parts import Finished, Part
from aira.reports.page import page
from aira.reports.runs import read_run

WHERE = ("path", "role", "revision", "trust_remote_code")
"""Keys of conf/model that say which model it is."""

BUILDING = ("config", "attn_implementation", "dropout", "gradient_checkpointing", "compile", "lora")
"""Keys of conf/model that say how it is set up."""


def train(cfg: DictConfig, run: Path | None = None) -> dict[str, float]:
    """Compose a run, train it, export the model and tell what came out.

    Args:
        cfg: composed from conf/train.yaml.
        run: the folder for everything that is written; by default Hydra's.

    Returns:
        The final metrics by name, as in the run's metrics.json.

    Raises:
        AiraError: something that the user can mend; what was computed until then is kept.
        Stopped: by a signal.
    """
    with Signals() as signals:
        by_hydra = run is None
        run = (run or Path(HydraConfig.get().runtime.output_dir)).resolve()
        return _train(plain(cfg), recorded(cfg), run, by_hydra, signals)


def _train(
    values: dict[str, Any], written: dict[str, Any], run: Path, by_hydra: bool, signals: Signals
) -> dict[str, float]:
    """See `train`; `written` is the configuration as it is written down, by a command and not where Python calls."""
    started = time.time()
    run.mkdir(parents=True, exist_ok=True)
    _quiet()
    running = {**values["trainer"], "precision": _precision(values["trainer"])}
    pl.seed_everything(values["seed"], verbose=False)
    checkpoint = Path(values["ckpt_path"]) if values["ckpt_path"] else None
    state = read_state(checkpoint) if checkpoint else {}

    settings, method = values["model"], values["method"]
    where = {key: settings[key] for key in WHERE}
    where["head"] = method["head"]
    tokenizer, added = load_tokenizer(**where, template=settings["template"], prompt_bos=settings["prompt_bos"])
    config, _ = load_config(**where, vocab_size=len(tokenizer), config=settings["config"])
    _check_length(values["data"]["max_length"], config)
    if method.get("reference"):
        theirs, _ = load_config(method["reference"], vocab_size=0)
        _check_length(values["data"]["max_length"], theirs, f" of method.reference={method['reference']}")
    beside = {key: settings[key] for key in ("revision", "trust_remote_code")}
    data = _data(values, tokenizer, end_tokens(settings["path"], tokenizer, added, config, **beside))
    for line in data.said:
        print(line)
    building = {key: settings[key] for key in BUILDING}
    model = load_model(tokenizer=tokenizer, added=added, label=method["label"], **where, **building)
    shared = {key: values[key] for key in ("optimizer", "schedule", "seed")}
    module = build({"_target_": method["module"]}, model=model, tokenizer=tokenizer, **shared, **method)
    steps = _steps(values["trainer"], data)
    record = {
        "settings": json.loads(without_home(as_json(identity(written)))),  # of plain types, for a checkpoint
        "rows": data.rows_key,
        "tokenizer": tokenizer_content(tokenizer),
    }
    changed: dict[str, Any] = {}
    if checkpoint:
        check_shapes(checkpoint, state["shapes"], module)
        changed = changed_settings(checkpoint, state, record, steps)
    chosen = [part for part in values["callbacks"].values() if part.pop("head", method["head"]) == method["head"]]
    callbacks = [
        build(part, run=run, tokenizer=tokenizer, started=started, record=record, changed=changed) for part in chosen
    ]
    loggers = [build(part, run=run, values=written) for part in values["logger"].values()]
    trainer = _trainer(running, data, steps, [*callbacks, signals], loggers, run)
    if trainer.is_global_zero:
        if by_hydra:
            write_config(run, written)
        _announce(values, data, model, steps, run)
        for key, (old, new) in changed.get("settings", {}).items():
            print(f"From step {changed['step']} on {key} is {new}; before, it was {old}.")
    with _processes_named(run):
        _meet_again(values["trainer"]["accelerator"])
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    signals.on_train_end(trainer, module)  # Lightning calls nothing where all steps were done before
    best = run / "checkpoints" / "best.ckpt" if values["export"] == "best" else None
    if best and not best.exists():
        raise AiraError(
            "export=best: no validation gave callbacks.checkpoint.monitor a number, so no checkpoint is the best. "
            f"{typed('ckpt_path', run / 'checkpoints' / 'last.ckpt')} export=last exports the last one."
        )
    model = module.whole_model(torch.load(best, map_location="cpu", weights_only=True)["state_dict"] if best else None)

    metrics = measured(trainer) | {"steps": trainer.global_step, "epochs": trainer.global_step / data.steps_per_epoch}
    if trainer.is_global_zero:
        parts = [part for part in (*callbacks, *loggers) if isinstance(part, Part)]
        finished = Finished(
            trainer, module, model, data, run, values, best is not None, started, metrics, environment()
        )
        for part in reversed(parts):
            metrics |= part.finish(finished)
        metrics["seconds"] = time.time() - finished.started
        for name, value in ({**trainer.callback_metrics} | metrics).items():
            if not math.isfinite(value):
                metrics.pop(name, None)
                print(f"{name} is {float(value)}, which is no number, and is left out.")
        module.before_export(model)
        (run / "evaluations.jsonl").unlink(missing_ok=True)  # of an export of fewer steps, which this one replaces
        longest = values["data"]["max_length"] if method["head"] == "score" else None
        card = model_card(written, metrics, finished.environment)
        export(model, tokenizer, run / "export", card, max_length=longest)
        for part in parts:
            part.exported(finished)
        known = {"tokenizer": record["tokenizer"], "data_key": data.key}  # by which runs can be compared
        write_whole(run / "metrics.json", as_json(metrics, indent=2) + "\n")
        write_whole(run / "environment.json", as_json(finished.environment | known, indent=2) + "\n")
        if by_hydra:
            write_whole(run / "report.html", page([read_run(run)], run.name))
        signals.idle = "when all was written."
        _summary(values, metrics, parts, run)
    trainer.strategy.barrier()
    return metrics


def _meet_again(accelerator: str) -> None:
    """Connect workers that torchrun has started again under names of their own.

    torchrun's store outlives them, and the addresses of those that died stand in it, which PyTorch would connect to.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    if not restarts or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    store, rank, processes = next(rendezvous("env://"))
    names = PrefixStore(f"restart-{restarts}", store)
    backend = "gloo" if accelerator == "cpu" else "nccl"
    torch.distributed.init_process_group(backend, store=names, rank=rank, world_size=processes)


@contextlib.contextmanager
def _processes_named(run: Path) -> Iterator[None]:
    """Say it plainly where another process of the run is gone: one of several ranks, or a worker that loads data."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        gone = not isinstance(error, RuntimeError) or isinstance(error, torch.distributed.DistError)
        if not gone and not any(name in str(error) for name in ("DataLoader worker", "gloo")):
            raise
        last = run / "checkpoints" / "last.ckpt"
        ways_on = f"Go on with {typed('ckpt_path', last)}." if last.exists() else "No checkpoint was written yet."
        reason = reason_of(error)
        raise AiraError(
            "Another process of this run has ended or cannot be reached; if it said why, that stands above. "
            f"{ways_on} ({reason})"
        ) from error


def _quiet() -> None:
    """Leave out what libraries say about choices that are made here on purpose."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*`isinstance.treespec.*",
        ".*smaller than the logging interval.*",
        ".*sync_dist=True.*",  # what is logged was added up over the processes
        ".*your dataloader is not resumable.*",  # the plan begins at the step that the run is at
        ".*`is_gradient_checkpointing` is deprecated.*",  # PEFT asks Transformers for it
    ):
        warnings.filterwarnings("ignore", text)


def _check_length(max_length: int, config: Any, which: str = "") -> None:
    context = context_length(config)
    if max_length > context:
        raise AiraError(
            f"data.max_length={max_length}: the model's context{which} is {context} tokens. Set it to that, or less."
        )


def _data(values: dict[str, Any], tokenizer: Any, ends: list[int]) -> DataModule:
    accepted = inspect.signature(DataModule.__init__).parameters
    return DataModule(
        tokenizer,
        kind=values["method"]["kind"],
        head=values["method"]["head"],
        loss_on=values["method"].get("loss_on", "response"),
        ends=ends,
        padded=values["model"]["role"] == "encoder",
        seed=values["seed"],
        cache_dir=values["cache_dir"],
        **{key: value for key, value in values["data"].items() if key in accepted},
    )


def _steps(settings: dict[str, Any], data: DataModule) -> int:
    """Optimizer steps of the whole run."""
    return int(settings["max_steps"] if settings["max_steps"] > 0 else settings["max_epochs"] * data.steps_per_epoch)


def _trainer(
    settings: dict[str, Any], data: DataModule, steps: int, callbacks: list[Any], loggers: list[Any], run: Path
) -> pl.Trainer:
    """Lightning's Trainer; to it the whole run is one epoch, so a run can be gone on with at any step."""
    interval = settings["val_check_interval"]
    if isinstance(interval, float):
        interval = max(1, round(interval * data.steps_per_epoch))
    try:
        trainer: pl.Trainer = instantiate(settings, _partial_=True)(
            max_epochs=1,
            max_steps=steps,
            val_check_interval=min(interval, steps),
            callbacks=[*callbacks, Progress()] if settings["enable_progress_bar"] else callbacks,
            logger=loggers or False,
            default_root_dir=run,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        return trainer
    except MisconfigurationException as error:  # a GPU that is not there, too many devices
        raise AiraError(f"The trainer cannot be set up: {error} (trainer=cpu runs everywhere.)") from error


def _precision(settings: dict[str, Any]) -> str:
    """What trainer.precision=auto is on this machine."""
    if settings["precision"] != "auto":
        return str(settings["precision"])
    if settings["accelerator"] == "cpu" or not torch.cuda.is_available():
        return "32-true"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    if isinstance(settings["strategy"], dict):  # of conf/trainer/fsdp.yaml
        raise AiraError(f"trainer.precision=auto would be 16-mixed on this GPU: {NO_FP16[True]}")
    return "16-mixed"


def _announce(values: dict[str, Any], data: DataModule, model: torch.nn.Module, steps: int, run: Path) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(
        f"{values['method']['name']}: {values['model']['name']} ({count / 1e6:.1f} M parameters, {trained / 1e6:.1f} M "
        f"trained) on {data.path}\n{len(data.train)} training and {len(data.validation)} validation examples, "
        f"{steps} steps of {data.batch_size}; written to {shown(run)}"
    )


def _summary(values: dict[str, Any], metrics: dict[str, float], parts: list[Part], run: Path) -> None:
    """What a user wants to know at the end, and the next thing to try."""
    print(f"\nDone in {metrics['seconds']:.0f} s, {metrics['steps']:.0f} steps.")
    for name in values["method"]["summary"]:
        if name in metrics:
            print(f"  {name:28} {metrics[name]:{'.0f' if metrics[name] >= 1000 else '.4g'}}")
    for line in (line for part in parts for line in part.summary()):
        print(line)
    export_path = shown(run / "export")
    print(f"\nExport (any Hugging Face tool loads it): {export_path}")
    if (run / "report.html").exists():
        print(f"Report: {shown(run / 'report.html')}")
    following = values["method"]["next"].format(export=typed("model.path", export_path))
    print(f"Next: {following} language={values['language']['code']}")
