"""A training run from its configuration to its export."""

import contextlib
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from aira.callbacks.checkpoint import changed_settings, check_shapes, last_metrics, read_state
from aira.callbacks.monitors import Monitors
from aira.callbacks.progress import Progress
from aira.callbacks.signals import Signals
from aira.config.compose import build, typed_settings
from aira.config.record import to_dict_without_env, write_config
from aira.config.schema import DPO, SFT, Train
from aira.config.schema import Trainer as TrainerSettings
from aira.config.values import NO_FP16, warmup_notice
from aira.data.batches import BatchSource
from aira.data.tokenize import tokenizer_hash
from aira.environment import environment
from aira.errors import AiraError, reason_of
from aira.files import as_json, display_path, quoted_override, without_home, write_atomically
from aira.folders import identity
from aira.models.export import export, model_card
from aira.models.families import context_length, family_of
from aira.models.loading import end_tokens, load_config, load_model, load_tokenizer
from aira.parts import Part, RunEnd, RunStart, build_parts, check_parts
from aira.reports.page import page
from aira.reports.runs import read_run


def train(cfg: DictConfig, run: Path | None = None) -> dict[str, float]:
    """Train a model, export it and print a summary.

    Args:
        cfg: composed from conf/train.yaml.
        run: the folder for everything that is written; by default Hydra's.

    Returns:
        The final metrics by name, as in the run's metrics.json.

    Raises:
        AiraError: something that the user can fix; what was computed until then is kept.
        Stopped: a signal stopped the run.
    """
    with Signals() as signals:
        by_hydra = run is None
        run = (run or Path(HydraConfig.get().runtime.output_dir)).resolve()
        return _train(typed_settings(cfg, Train), to_dict_without_env(cfg), run, by_hydra, signals)


def _train(settings: Train, config: dict[str, Any], run: Path, by_hydra: bool, signals: Signals) -> dict[str, float]:
    """See `train`; `config` is the configuration for the run's folder, where a command, but not Python, writes it."""
    started = time.time()
    run.mkdir(parents=True, exist_ok=True)
    _silence_warnings()
    part_settings = settings.callbacks.parts()
    check_parts(part_settings, "callbacks")
    check_parts(settings.logger.parts(), "logger")
    precision = resolve_precision(settings.trainer)
    pl.seed_everything(settings.seed, verbose=False)
    checkpoint = Path(settings.ckpt_path) if settings.ckpt_path else None
    state = read_state(checkpoint) if checkpoint else {}

    backbone, method = settings.model, settings.method
    data, tokenizer, added, source, _ = prepare(settings)
    for line in (*data.layouts, *data.notices):
        print(line)
    model = load_model(
        tokenizer=tokenizer,
        added=added,
        label=method.label,
        config=backbone.config,
        attn_implementation=backbone.attn_implementation,
        dropout=backbone.dropout,
        gradient_checkpointing=backbone.gradient_checkpointing,
        compile=backbone.compile,
        load_in_4bit=backbone.load_in_4bit,
        lora=backbone.lora,
        **source,
    )
    if precision == "bf16-true":  # not by Lightning, which would cast the data's and losses' floats, too
        model, precision = model.to(torch.bfloat16), "32-true"
    module = build(
        {"_target_": method.module, **method.arguments()},
        f"method={method.name}",
        (pl.LightningModule,),
        model=model,
        tokenizer=tokenizer,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        seed=settings.seed,
    )
    steps = _steps(settings.trainer, data)
    record = {
        "settings": json.loads(without_home(as_json(identity(config)))),  # JSON types, for a checkpoint
        "rows": data.rows_key,
        "tokenizer": tokenizer_hash(tokenizer),
    }
    changed: dict[str, Any] = {}
    if checkpoint:
        check_shapes(checkpoint, state["shapes"], module)
        changed = changed_settings(checkpoint, state, record, steps)
    run_start = RunStart(run, config, tokenizer, started, record, changed)
    monitors = {
        f"callbacks.{name}.monitor": str(part["monitor"]) for name, part in part_settings.items() if "monitor" in part
    }
    monitors.pop("callbacks.checkpoint.monitor", None)  # which has its own reasons
    callbacks = [Monitors(monitors), *build_parts(part_settings, "callbacks", run_start, method.head)]
    loggers = build_parts(settings.logger.parts(), "logger", run_start)
    trainer = _trainer(settings.trainer, precision, data, steps, [*callbacks, signals], loggers, run)
    if trainer.is_global_zero:
        if by_hydra:
            write_config(run, config)
        _print_start(settings, data, model, steps, run)
        for notice in (
            warmup_notice(settings, steps) if settings.trainer.max_steps < 0 else ()
        ):  # else told at the start
            print(f"Notice: {notice}")
        for key, (old, new) in changed.get("settings", {}).items():
            print(f"From step {changed['step']} on, {key} is {new}; before, it was {old}.")
    with _report_lost_processes(run):
        _reconnect(settings.trainer.accelerator)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and trainer.global_step < steps:
        print(f"Ended early, after step {trainer.global_step} of {steps}.")
    signals.on_train_end(trainer, module)  # Lightning does not call it if no step is left
    best = run / "checkpoints" / "best.ckpt" if settings.export == "best" else None
    if best and not best.exists():
        raise AiraError(
            "export=best: no validation gave callbacks.checkpoint.monitor a number, so no checkpoint is the best. "
            f"{quoted_override('ckpt_path', run / 'checkpoints' / 'last.ckpt')} export=last exports the last one."
        )
    model = module.whole_model(torch.load(best, map_location="cpu", weights_only=True)["state_dict"] if best else None)

    metrics = last_metrics(trainer) | {
        "steps": trainer.global_step,
        "epochs": trainer.global_step / data.steps_per_epoch,
    }
    if trainer.is_global_zero:
        parts = [part for part in (*callbacks, *loggers) if isinstance(part, Part)]
        run_end = RunEnd(trainer, module, model, data, run, settings, best is not None, started, metrics, environment())
        for part in reversed(parts):
            metrics |= part.finish(run_end)
        metrics["seconds"] = time.time() - run_end.started
        for name, value in ({**trainer.callback_metrics} | metrics).items():
            if not math.isfinite(value):
                metrics.pop(name, None)
                print(f"{name} is {float(value)}, which is no number, and is left out.")
        module.before_export(model)
        (run / "evaluations.jsonl").unlink(missing_ok=True)  # of an earlier export, which this one replaces
        longest = settings.data.max_length if method.head == "score" else None
        card = model_card(config, metrics, run_end.environment)
        export(model, tokenizer, run / "export", card, max_length=longest)
        for part in parts:
            part.on_export(run_end)
        hashes = {"tokenizer": record["tokenizer"], "data_key": data.key}  # runs with equal ones can be compared
        write_atomically(run / "metrics.json", as_json(metrics, indent=2) + "\n")
        write_atomically(run / "environment.json", as_json(run_end.environment | hashes, indent=2) + "\n")
        if by_hydra:
            write_atomically(run / "report.html", page([read_run(run)], run.name))
        signals.idle = "when all was written."
        _print_summary(settings, metrics, parts, run)
    trainer.strategy.barrier()
    return metrics


def _reconnect(accelerator: str) -> None:
    """Connect workers that torchrun has restarted, under keys of their own.

    torchrun's store outlives the workers: it still has the addresses of those that died, and PyTorch would use them.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)
    if not restarts or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    store, rank, processes = next(rendezvous("env://"))
    names = PrefixStore(f"restart-{restarts}", store)
    backend = "gloo" if accelerator == "cpu" else "nccl"
    torch.distributed.init_process_group(backend, store=names, rank=rank, world_size=processes)


@contextlib.contextmanager
def _report_lost_processes(run: Path) -> Iterator[None]:
    """Turn the loss of another process of the run, a rank or a data loading worker, into an `AiraError`."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        is_lost = not isinstance(error, RuntimeError) or isinstance(error, torch.distributed.DistError)
        if not is_lost and not any(name in str(error) for name in ("DataLoader worker", "gloo")):
            raise
        last = run / "checkpoints" / "last.ckpt"
        advice = (
            f"Resume with {quoted_override('ckpt_path', last)}." if last.exists() else "No checkpoint was written yet."
        )
        reason = reason_of(error)
        raise AiraError(
            "Another process of this run has ended or cannot be reached; if it gave a reason, it is printed above. "
            f"{advice} ({reason})"
        ) from error


def _silence_warnings() -> None:
    """Suppress libraries' warnings about choices that are made here on purpose."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*`isinstance.treespec.*",
        ".*smaller than the logging interval.*",
        ".*sync_dist=True.*",  # what is logged is already summed over processes
        ".*your dataloader is not resumable.*",  # the plan starts at the step at which the run is resumed
        ".*`is_gradient_checkpointing` is deprecated.*",  # PEFT asks Transformers for it
    ):
        warnings.filterwarnings("ignore", text)


class Prepared(NamedTuple):
    """What a run reads before its model."""

    data: BatchSource
    tokenizer: PreTrainedTokenizerBase
    added: list[int]  # ids of the tokens that were added to the vocabulary
    source: dict[str, Any]  # where the model is, as arguments of `load_model`
    config: PretrainedConfig  # of the model, as it is there


def prepare(settings: Train) -> Prepared:
    """Read the tokenizer and the data of a run, and check them against the configuration of its model.

    Raises:
        AiraError: one of them cannot be read, or they do not go together.
    """
    backbone, method = settings.model, settings.method
    hub: dict[str, Any] = {"revision": backbone.revision, "trust_remote_code": backbone.trust_remote_code}
    architecture = _architecture(settings, hub)
    source = {"path": backbone.path, "architecture": architecture, "head": method.head, **hub}
    tokenizer, added = load_tokenizer(**source, template=backbone.template, prompt_bos=backbone.prompt_bos)
    model_config, is_new = load_config(**source, vocab_size=len(tokenizer), config=backbone.config)
    if not is_new:
        loaded = {key: getattr(model_config, key, value) for key, value in backbone.config.items()}
        differing = [
            f"{key}={loaded[key]}, not {value}" for key, value in backbone.config.items() if loaded[key] != value
        ]
        if differing:
            print(f"Notice: model.config is for a new model; {backbone.path} has {'; '.join(differing)}.")
    _check_length(settings.data.max_length, model_config)
    if isinstance(method, DPO) and method.reference:
        reference_config, _ = load_config(method.reference, vocab_size=0)
        _check_length(settings.data.max_length, reference_config, f" of method.reference={method.reference}")
    data = _data(settings, architecture, tokenizer, end_tokens(backbone.path, tokenizer, added, model_config, **hub))
    return Prepared(data, tokenizer, added, source, model_config)


def _architecture(settings: Train, hub: dict[str, Any]) -> str:
    """Causal or encoder; with model=auto, as the configuration of the model says.

    Raises:
        AiraError: the method is for the other one.
    """
    model, method = settings.model, settings.method
    if model.architecture != "auto":
        return model.architecture
    config, _ = load_config(model.path, vocab_size=0, architecture=None, head=method.head, **hub)
    architecture = family_of(config).architecture
    if architecture not in method.architectures:
        raise AiraError(
            f"method={method.name} needs a {' or '.join(method.architectures)} model and {model.path} is an "
            f"{architecture}."
        )
    return architecture


def _check_length(max_length: int, config: Any, which: str = "") -> None:
    context = context_length(config)
    if max_length > context:
        raise AiraError(
            f"data.max_length={max_length}: the model's context{which} is {context} tokens. Set it to that, or less."
        )


def _data(settings: Train, architecture: str, tokenizer: Any, ends: list[int]) -> BatchSource:
    method, unused = settings.method, {"name", "sources"}  # from which the configuration takes other keys
    source: BatchSource = build(
        {"_target_": method.datamodule},
        "method.datamodule",
        (BatchSource,),
        tokenizer=tokenizer,
        kind=method.kind,
        head=method.head,
        loss_on=method.loss_on if isinstance(method, SFT) else "response",
        ends=ends,
        padded=architecture == "encoder",
        seed=settings.seed,
        cache_dir=settings.cache_dir,
        **{key: value for key, value in settings.data if key not in unused},
    )
    return source


def _steps(settings: TrainerSettings, data: BatchSource) -> int:
    """Optimizer steps of the whole run."""
    return settings.max_steps if settings.max_steps > 0 else settings.max_epochs * data.steps_per_epoch


def _trainer(
    settings: TrainerSettings,
    precision: str,
    data: BatchSource,
    steps: int,
    callbacks: list[Any],
    loggers: list[Any],
    run: Path,
) -> pl.Trainer:
    """Lightning's Trainer; to it the whole run is one epoch, so that a run can be resumed at any step."""
    interval = settings.val_check_interval
    if isinstance(interval, float):
        interval = max(1, round(interval * data.steps_per_epoch))
    arguments = settings.model_dump(by_alias=True) | {
        "precision": precision,
        "max_epochs": 1,
        "max_steps": steps,
        "val_check_interval": min(interval, steps),
    }
    try:
        trainer: pl.Trainer = build(
            arguments,
            "trainer",
            callbacks=[*callbacks, Progress()] if settings.enable_progress_bar else callbacks,
            logger=loggers or False,
            default_root_dir=run,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        return trainer
    except MisconfigurationException as error:  # no GPU, or too many devices
        raise AiraError(f"The trainer cannot be set up: {error} (trainer=cpu runs everywhere.)") from error


def resolve_precision(settings: TrainerSettings) -> str:
    """The precision, with trainer.precision=auto resolved for this machine."""
    if settings.precision != "auto":
        return settings.precision
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    if settings.sharded:
        raise AiraError(f"trainer.precision=auto would be 16-mixed on this GPU: {NO_FP16[True]}")
    return "16-mixed"


def _print_start(settings: Train, data: BatchSource, model: torch.nn.Module, steps: int, run: Path) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(
        f"{settings.method.name}: {settings.model.name} ({count / 1e6:.1f} M parameters, {trained / 1e6:.1f} M "
        f"trained) on {data.path}\n{len(data.train)} training and {len(data.validation)} validation examples, "
        f"{steps} steps of {data.batch_size}; written to {display_path(run)}"
    )


def _print_summary(settings: Train, metrics: dict[str, float], parts: list[Part], run: Path) -> None:
    """Print the main metrics, the paths that were written, and the next command to try."""
    print(f"\nDone in {metrics['seconds']:.0f} s, {metrics['steps']:.0f} steps.")
    for name in settings.method.summary:
        if name in metrics:
            print(f"  {name:28} {metrics[name]:{'.0f' if metrics[name] >= 1000 else '.4g'}}")
    for line in (line for part in parts for line in part.summary()):
        print(line)
    export_path = display_path(run / "export")
    print(f"\nExport (any Hugging Face tool loads it): {export_path}")
    if (run / "report.html").exists():
        print(f"Report: {display_path(run / 'report.html')}")
    next_command = settings.method.next.format(export=quoted_override("model.path", export_path))
    print(f"Next: {next_command} language={settings.language.code}")
