"""Hyperparameter search, with Optuna or a Weights & Biases sweep, and its results."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from aira.config.compose import build, typed_settings
from aira.config.schema import Train
from aira.config.spaces import Space, as_override, choice_values, parse_space
from aira.errors import AiraError, reason_of
from aira.files import install_command, read_json, read_text, write_atomically
from aira.ranking import confounders, hashes
from aira.tracking.login import online
from aira.trials import TRIAL, final_value, rows_of_log, run_trial


def sweep(cfg: DictConfig) -> float | None:
    """Run the search that conf/sweep describes, in Hydra's run folder."""
    hydra = HydraConfig.get()
    overrides = [text for text in hydra.overrides.task if not text.lstrip("+~").startswith("sweep")]
    settings = typed_settings(cfg, Train).sweep.model_dump(by_alias=True, exclude_unset=True, exclude={"spaces"})
    folder = Path(hydra.runtime.output_dir)
    best: float | None = build(settings, "sweep", overrides=overrides, folder=folder, cwd=hydra.runtime.cwd)
    return best


def optuna(
    overrides: list[str],
    folder: Path,
    cwd: str,
    *,
    trials: int,
    metric: str,
    mode: str,
    prune: bool,
    space: Space,
) -> float | None:
    """Search with Optuna's TPE sampler and, with `prune`, its median rule; each trial is a run in `folder`.

    The study is written to `folder` after every trial. Interrupted trials are resumed first.

    Args:
        overrides: of `aira train`, for every trial.
        cwd: the folder that relative paths in them refer to.
        trials: the number of trials of the study.
        space: what to vary.

    Returns:
        The best value of `metric`; None if every trial failed.

    Raises:
        AiraError: Optuna is not installed, the folder holds another search, or another process runs this one.
        Stopped: a signal stopped the search.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise AiraError(f"sweep=optuna needs Optuna: {install_command('sweep')}.") from error
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    library.logging.set_verbosity(library.logging.WARNING)
    search = {"overrides": overrides, "space": dict(space), "metric": metric, "mode": mode}
    if prune and "logger=none" in overrides:
        raise AiraError(
            "sweep.prune=true reads the trials' logs, and logger=none writes none: set one of them otherwise."
        )
    _check_metric(metric, space)
    _check_same(folder / "search.json", search)
    distributions: dict[str, Any] = {
        key: CategoricalDistribution(choice_values(values))
        if isinstance(values, ChoiceSweep)
        else FloatDistribution(float(values.start or 0), float(values.end or 0), log="log" in values.tags)
        for key, values in parse_space(space).items()
    }
    try:
        lock = FileLock(folder / "study.lock").acquire(timeout=0)
    except Timeout as error:
        raise AiraError(
            f"Another process runs the search in {folder}. Wait for it, or name another folder: hydra.run.dir=<folder>."
        ) from error
    with lock:
        _check_study(folder / "study.log")
        storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
        study = library.create_study(
            study_name="aira",
            storage=storage,
            direction=library.study.StudyDirection[{"min": "MINIMIZE", "max": "MAXIMIZE"}[mode]],
            load_if_exists=True,
            pruner=library.pruners.MedianPruner(n_startup_trials=3) if prune else library.pruners.NopPruner(),
        )
        states = library.trial.TrialState
        while True:
            interrupted = study.get_trials(deepcopy=False, states=(states.RUNNING,))
            done = len(study.get_trials(deepcopy=False)) - len(interrupted)
            if done >= trials:
                break
            study.sampler = library.samplers.TPESampler(seed=done)
            if interrupted:
                numbers = storage.get_study_id_from_name("aira"), interrupted[0].number
                trial = library.trial.Trial(study, storage.get_trial_id_from_study_id_trial_number(*numbers))
            else:
                trial = study.ask(distributions)
            chosen = [as_override(key, value) for key, value in trial.params.items()]
            print(f"\nTrial {trial.number + 1} of {trials}: {' '.join(chosen)}", flush=True)
            run = folder / f"{trial.number:03}"
            pruner = _Pruner(trial, run, metric) if prune else None
            value = run_trial([*overrides, *chosen], run, cwd, metric, pruner)
            if pruner and pruner.pruned:
                study.tell(trial, state=states.PRUNED)
                print(f"Trial {trial.number + 1} is pruned: worse than most at the same step.", file=sys.stderr)
            elif value is None:
                study.tell(trial, state=states.FAIL)
            else:
                study.tell(trial, value)
        conclude(folder, metric, mode)
        finished = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
        return study.best_value if finished else None


def _check_metric(metric: str, space: Space) -> None:
    """Refuse a search by a metric whose meaning depends on what the search varies."""
    keys = confounders(metric, [dict.fromkeys(space, value) for value in (0, 1)])
    if keys:
        raise AiraError(
            f"sweep.metric={metric}: {' and '.join(keys)}, which sweep.space varies, changes what it means, so trials "
            "cannot be compared by it. For DPO, use sweep.metric=val/rewards/accuracies sweep.mode=max."
        )


def _check_study(log: Path) -> None:
    """Remove an incomplete last record from a study's log, to which Optuna would append.

    Raises:
        AiraError: the log is damaged.
    """
    try:
        whole, _, cut = log.read_bytes().rpartition(b"\n") if log.exists() else (b"", b"", b"")
        if not all(isinstance(json.loads(line), dict) for line in whole.splitlines()):
            raise ValueError("it holds other than Optuna's records")
    except (OSError, ValueError, RecursionError) as error:
        raise AiraError(
            f"{log} is damaged, or no log of a search: {reason_of(error)}. Remove it to start a new search in this "
            "folder, or name another folder: hydra.run.dir=<folder>."
        ) from error
    if cut:
        print(f"Notice: the last record of {log} is skipped, since it was cut off.", file=sys.stderr)
        write_atomically(log, whole + b"\n" * bool(whole))


def _check_same(file: Path, search: dict[str, Any]) -> None:
    """Refuse to mix two searches in one folder."""
    before = read_json(file)
    if before is not None and before != search:
        differing = [key for key in search if before.get(key) != search[key]]
        raise AiraError(
            f"{file.parent} holds a search with another {' and '.join(differing)}. hydra.run.dir= names a new folder."
        )
    write_atomically(file, json.dumps(search, indent=2))


class _Pruner:
    """Reports a trial's validations to Optuna while it runs, and asks whether to prune it."""

    def __init__(self, trial: Any, run: Path, metric: str) -> None:
        self.trial, self.run, self.metric = trial, run, metric
        self.pruned = False
        self.reported = set(trial.study.trials[trial.number].intermediate_values)  # a resumed trial has some

    def __call__(self) -> bool:
        for log in sorted(self.run.glob("logs/version_*/metrics.csv")):
            for row in rows_of_log(read_text(log, self.run) or ""):
                step = int(row["step"])
                if row.get(self.metric) and step not in self.reported:
                    self.trial.report(float(row[self.metric]), step)
                    self.reported.add(step)
        self.pruned = self.trial.should_prune()
        return self.pruned


def wandb(
    overrides: list[str], folder: Path, cwd: str, *, project: str, search: str, metric: str, mode: str, space: Space
) -> None:
    """Write `sweep.yaml` for Weights & Biases, and create the sweep if there is a login.

    Args:
        overrides: of `aira train`, for every trial.
        search: `bayes`, `random` or `grid`.
    """
    _check_metric(metric, space)
    parameters: dict[str, Any] = {}
    for key, values in parse_space(space).items():
        if isinstance(values, ChoiceSweep):
            parameters[key] = {"values": choice_values(values)}
        else:
            kind = "log_uniform_values" if "log" in values.tags else "uniform"
            parameters[key] = {"distribution": kind, "min": float(values.start or 0), "max": float(values.end or 0)}
    loggers = [] if any(text.startswith("logger=") for text in overrides) else ["logger=wandb"]
    spec = {
        "program": "aira",
        "method": search,
        "metric": {"name": metric, "goal": {"min": "minimize", "max": "maximize"}[mode]},
        "parameters": parameters,
        "command": ["${env}", "${program}", "train", *overrides, *loggers, "${args_no_hyphens}"],
    }
    file = folder / "sweep.yaml"
    write_atomically(file, yaml.safe_dump(spec, sort_keys=False))
    if online():
        import wandb as client

        print(f"Start as many agents as you like, in this folder: wandb agent {client.sweep(spec, project=project)}")
    else:
        command = shlex.join(["wandb", "sweep", "--project", project, str(file)])
        print(f"There is no login to Weights & Biases. With one: {command}")


def trials_of(folder: Path, metric: str) -> list[tuple[str, list[str], float | None]]:
    """The trials in a folder: name, overrides, and the final value of a metric, None if there is none."""
    trials = []
    for file in sorted(folder.glob(f"*/{TRIAL}")):
        overrides = read_json(file, list)
        if overrides is not None and all(isinstance(text, str) for text in overrides):
            trials.append((file.parent.name, overrides, final_value(file.parent, metric)))
    return trials


def table(folder: Path, metric: str, mode: str) -> str:
    """The trials of a sweep as a table; if they can be compared, the best one first, with its command."""
    trials = trials_of(folder, metric)
    ended = [(folder / name, overrides) for name, overrides, value in trials if value is not None]
    settings = [_chosen(overrides) | hashes(read_json(run / "environment.json") or {}) for run, overrides in ended]
    keys = confounders(metric, settings)
    sign = {"min": 1, "max": -1}[mode]
    if not keys:
        trials.sort(key=lambda trial: float("inf") if trial[2] is None else sign * trial[2])
    shared = set.intersection(*(set(overrides) for _, overrides, _ in trials)) if len(trials) > 1 else set()
    width = max([len(name) for name, *_ in trials] + [5])
    lines = [f"\n{'trial':{width}}  {metric:>12}  overrides"]
    for name, overrides, value in trials:
        varied = " ".join(text for text in overrides if text not in shared)
        lines.append(f"{name:{width}}  {'unfinished' if value is None else format(value, '.5g'):>12}  {varied}")
    if keys:
        lines.append(f"\nNot ranked: {' and '.join(keys)} changes what {metric} means.")
    elif trials and trials[0][2] is not None:
        equal = sum(value == trials[0][2] for *_, value in trials) - 1
        lines.append(f"\nBest{f' (as {equal} others)' * (equal > 0)}: aira train {shlex.join(trials[0][1])}")
    return "\n".join(lines)


def _chosen(overrides: list[str]) -> dict[str, str]:
    """Overrides as a mapping of keys, or groups, to values."""
    return {key.lstrip("+~"): value for key, _, value in (text.partition("=") for text in overrides)}


def conclude(folder: Path, metric: str, mode: str) -> None:
    """Print the table of a sweep's trials, and write its report."""
    from aira.reports.page import page  # matplotlib is imported only when needed
    from aira.reports.runs import find_runs

    print(table(folder, metric, mode))
    if any(value is not None for *_, value in trials_of(folder, metric)):
        write_atomically(folder / "report.html", page(find_runs(folder), folder.name))
        print(f"Report: {folder / 'report.html'}")


class Trials(Callback):
    """Concludes a multirun; see `conclude`."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """After the last trial."""
        conclude(Path(config.hydra.sweep.dir), config.method.compare_by, config.method.compare_mode)
