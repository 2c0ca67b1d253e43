"""Looking for good hyperparameters: with Optuna here, or by a sweep of Weights & Biases; and what came out."""

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

from aira.config.compose import build, validated
from aira.config.schema import Train
from aira.config.spaces import Space, chosen_as, listed, parsed
from aira.errors import AiraError, reason_of
from aira.files import read_json, read_text, write_whole
from aira.ranking import blurred_by, hashes
from aira.tracking.login import online
from aira.trials import TRIAL, final, rows_of_log, run_trial


def sweep(cfg: DictConfig) -> float | None:
    """Run the search that conf/sweep describes, in Hydra's run folder."""
    hydra = HydraConfig.get()
    overrides = [text for text in hydra.overrides.task if not text.lstrip("+~").startswith("sweep")]
    settings = validated(cfg, Train).sweep.model_dump(by_alias=True, exclude_unset=True, exclude={"spaces"})
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

    The study is written to `folder` after every trial. Trials that were cut off are gone on with first.

    Args:
        overrides: of `aira train`, for every trial.
        cwd: where their relative paths begin.
        trials: how many the study is to have.
        space: what to vary.

    Returns:
        The best value of `metric`; None where every trial failed.

    Raises:
        AiraError: Optuna is not installed, or the folder holds, or another process runs, another search.
        Stopped: by a signal.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise AiraError("sweep=optuna needs Optuna: pip install -e '.[sweep]'.") from error
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
        key: CategoricalDistribution(listed(where))
        if isinstance(where, ChoiceSweep)
        else FloatDistribution(float(where.start or 0), float(where.end or 0), log="log" in where.tags)
        for key, where in parsed(space).items()
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
            cut_off = study.get_trials(deepcopy=False, states=(states.RUNNING,))
            done = len(study.get_trials(deepcopy=False)) - len(cut_off)
            if done >= trials:
                break
            study.sampler = library.samplers.TPESampler(seed=done)
            if cut_off:
                known = storage.get_study_id_from_name("aira"), cut_off[0].number
                trial = library.trial.Trial(study, storage.get_trial_id_from_study_id_trial_number(*known))
            else:
                trial = study.ask(distributions)
            chosen = [chosen_as(key, value) for key, value in trial.params.items()]
            print(f"\nTrial {trial.number + 1} of {trials}: {' '.join(chosen)}", flush=True)
            run = folder / f"{trial.number:03}"
            watch = _Watch(trial, run, metric) if prune else None
            value = run_trial([*overrides, *chosen], run, cwd, metric, watch)
            if watch and watch.pruned:
                study.tell(trial, state=states.PRUNED)
                print(f"Trial {trial.number + 1} is stopped: worse than most at the same step.", file=sys.stderr)
            elif value is None:
                study.tell(trial, state=states.FAIL)
            else:
                study.tell(trial, value)
        conclude(folder, metric, mode)
        finished = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
        return study.best_value if finished else None


def _check_metric(metric: str, space: Space) -> None:
    """Refuse to look for the best by a metric whose meaning the search itself changes."""
    blurred = blurred_by(metric, [dict.fromkeys(space, end) for end in (0, 1)])
    if blurred:
        raise AiraError(
            f"sweep.metric={metric}: {' and '.join(blurred)}, which sweep.space varies, changes what it means, so its "
            "best value would be no winner. For DPO, sweep.metric=val/rewards/accuracies sweep.mode=max compares."
        )


def _check_study(log: Path) -> None:
    """Leave out the end of a study's log that a kill or a full disk cut off; to it, Optuna would add.

    Raises:
        AiraError: it is damaged.
    """
    try:
        whole, _, cut = log.read_bytes().rpartition(b"\n") if log.exists() else (b"", b"", b"")
        if not all(isinstance(json.loads(line), dict) for line in whole.splitlines()):
            raise ValueError("it holds other than Optuna's records")
    except (OSError, ValueError, RecursionError) as error:
        raise AiraError(
            f"{log} is damaged, or no log of a search: {reason_of(error)}. Take it away to search anew in this "
            "folder, or name another: hydra.run.dir=<folder>."
        ) from error
    if cut:
        print(f"Notice: the last record of {log} is passed over, since it was cut off.", file=sys.stderr)
        write_whole(log, whole + b"\n" * bool(whole))


def _check_same(file: Path, search: dict[str, Any]) -> None:
    """Refuse to mix two searches in one folder."""
    before = read_json(file)
    if before is not None and before != search:
        differing = [key for key in search if before.get(key) != search[key]]
        raise AiraError(
            f"{file.parent} holds a search with another {' and '.join(differing)}. hydra.run.dir= names a new folder."
        )
    write_whole(file, json.dumps(search, indent=2))


class _Watch:
    """Reports a trial's validations to Optuna while it runs, and asks whether it is hopeless."""

    def __init__(self, trial: Any, run: Path, metric: str) -> None:
        self.trial, self.run, self.metric = trial, run, metric
        self.pruned = False
        self.reported = set(trial.study.trials[trial.number].intermediate_values)  # of a trial that was cut off, some

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
    """Write `sweep.yaml` for Weights & Biases, and start the sweep where there is a login.

    Args:
        overrides: of `aira train`, for every trial.
        search: `bayes`, `random` or `grid`.
    """
    _check_metric(metric, space)
    parameters: dict[str, Any] = {}
    for key, where in parsed(space).items():
        if isinstance(where, ChoiceSweep):
            parameters[key] = {"values": listed(where)}
        else:
            kind = "log_uniform_values" if "log" in where.tags else "uniform"
            parameters[key] = {"distribution": kind, "min": float(where.start or 0), "max": float(where.end or 0)}
    loggers = [] if any(text.startswith("logger=") for text in overrides) else ["logger=wandb"]
    spec = {
        "program": "aira",
        "method": search,
        "metric": {"name": metric, "goal": {"min": "minimize", "max": "maximize"}[mode]},
        "parameters": parameters,
        "command": ["${env}", "${program}", "train", *overrides, *loggers, "${args_no_hyphens}"],
    }
    file = folder / "sweep.yaml"
    write_whole(file, yaml.safe_dump(spec, sort_keys=False))
    if online():
        import wandb as client

        print(f"Start as many agents as you like, in this folder: wandb agent {client.sweep(spec, project=project)}")
    else:
        typed = shlex.join(["wandb", "sweep", "--project", project, str(file)])
        print(f"There is no login to Weights & Biases. With one: {typed}")


def trials_of(folder: Path, metric: str) -> list[tuple[str, list[str], float | None]]:
    """The trials in a folder: name, overrides, and the final value of a metric, None where it is not there."""
    found = []
    for file in sorted(folder.glob(f"*/{TRIAL}")):
        overrides = read_json(file, list)
        if overrides is not None and all(isinstance(text, str) for text in overrides):
            found.append((file.parent.name, overrides, final(file.parent, metric)))
    return found


def table(folder: Path, metric: str, mode: str) -> str:
    """The trials of a sweep, and where they can be compared the best first, with its command."""
    trials = trials_of(folder, metric)
    ended = [(folder / name, overrides) for name, overrides, value in trials if value is not None]
    known = [_chosen(overrides) | hashes(read_json(run / "environment.json") or {}) for run, overrides in ended]
    blurred = blurred_by(metric, known)
    sign = {"min": 1, "max": -1}[mode]
    if not blurred:
        trials.sort(key=lambda trial: float("inf") if trial[2] is None else sign * trial[2])
    shared = set.intersection(*(set(overrides) for _, overrides, _ in trials)) if len(trials) > 1 else set()
    width = max([len(name) for name, *_ in trials] + [5])
    lines = [f"\n{'trial':{width}}  {metric:>12}  overrides"]
    for name, overrides, value in trials:
        own = " ".join(text for text in overrides if text not in shared)
        lines.append(f"{name:{width}}  {'unfinished' if value is None else format(value, '.5g'):>12}  {own}")
    if blurred:
        lines.append(f"\nNot ranked: {' and '.join(blurred)} changes what {metric} means.")
    elif trials and trials[0][2] is not None:
        equal = sum(value == trials[0][2] for *_, value in trials) - 1
        lines.append(f"\nBest{f' (as {equal} others)' * (equal > 0)}: aira train {shlex.join(trials[0][1])}")
    return "\n".join(lines)


def _chosen(overrides: list[str]) -> dict[str, str]:
    """Overrides as keys, or groups, with what was chosen."""
    return {key.lstrip("+~"): value for key, _, value in (text.partition("=") for text in overrides)}


def conclude(folder: Path, metric: str, mode: str) -> None:
    """Print the table of a sweep's trials, and write its page."""
    from aira.reports.page import page  # matplotlib is not needed before
    from aira.reports.runs import find_runs

    print(table(folder, metric, mode))
    if any(value is not None for *_, value in trials_of(folder, metric)):
        write_whole(folder / "report.html", page(find_runs(folder), folder.name))
        print(f"Report: {folder / 'report.html'}")


class Trials(Callback):
    """Concludes a multirun; see `conclude`."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """After the last trial."""
        conclude(Path(config.hydra.sweep.dir), config.method.compare_by, config.method.compare_mode)
