"""An evaluation from its configuration to its tables: the whole story on one page."""

import logging
import re
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from transformers import PretrainedConfig

from aira.callbacks.emissions import energy, start_tracker
from aira.config.compose import validated
from aira.config.record import recorded, write_config
from aira.config.schema import Evaluate, Suite
from aira.environment import environment
from aira.errors import AiraError, reason_of
from aira.evaluation.measure import PURPOSES, chat, scorer
from aira.evaluation.results import (
    Line,
    class_table,
    compare,
    differing_settings,
    published_lines,
    record_scores,
    table,
)
from aira.evaluation.tasks import SCORER_TASKS, check
from aira.files import as_json, exports, matched, run_of_export, shown, without_home, write_whole
from aira.models.export import model_card
from aira.models.families import context_length, score_label
from aira.models.loading import load_config
from aira.parts import Begun, Part, begin, log_table
from aira.reports.page import page
from aira.reports.runs import read_run


def evaluate(cfg: DictConfig, run: Path | None = None) -> dict[str, Any]:
    """Measure models, and tell what came out beside baselines and published figures.

    Args:
        cfg: composed from conf/evaluate.yaml.
        run: the folder for everything that is written; by default Hydra's.

    Returns:
        For each model its figures by task.

    Raises:
        AiraError: something that the user can mend; what was scored until then is kept.
    """
    settings, written, by_hydra = validated(cfg, Evaluate), recorded(cfg), run is None
    run = (run or Path(HydraConfig.get().runtime.output_dir)).resolve()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if settings.compare:
        compared = {"compare": _compared(settings, run)}
        if by_hydra:
            write_config(run, written)
        return compared
    suite, chosen = settings.eval, settings.model
    where: dict[str, Any] = {"revision": chosen.revision, "trust_remote_code": chosen.trust_remote_code}
    references = published_lines(suite.published)
    work = []
    for name, path in _models(settings).items():  # every mistake is found before the first model is evaluated
        config, _ = load_config(path, vocab_size=0, architecture=None, head="score", **where)
        if (suite.max_length or 0) > context_length(config):
            raise AiraError(
                f"eval.max_length={suite.max_length}: the context of {path} is {context_length(config)} tokens. Set "
                "it to that, or less."
            )
        purpose = _purpose(path, config, suite)
        tasks = suite.tasks or [_sample_task(purpose, settings.language.code)]
        check(tasks, purpose, suite.data_dir)
        work.append((name, path, purpose, tasks))

    lines: list[Line] = []
    if by_hydra:
        write_config(run, written)
    for name, path, purpose, tasks in work:
        started, tracker = time.time(), start_tracker(settings.country)
        folder = run / name
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        try:
            measure = chat if purpose == "chat" else scorer
            found, results = measure(name, path, tasks, settings, where, folder / "rows")
        finally:
            emissions = energy(tracker, stop=True)
        results["aira"] = {
            "model": path,
            "purpose": purpose,
            "config": written,
            "environment": environment(),
            "seconds": time.time() - started,
            **emissions,
        }
        text = without_home(as_json(results, indent=2, default=str))
        write_whole(folder / "results.json", f"{text}\n")
        lines += found
        _remembered(path, found, settings, chat=purpose == "chat")
    return _told(lines + references, work, settings, written, run)


def _remembered(path: str, lines: list[Line], settings: Evaluate, chat: bool) -> None:
    """Let the run whose export was evaluated know: its evaluations.jsonl, its page and its card."""
    run = run_of_export(path)
    if run is None:
        return
    try:
        read_run(run)  # one that is no run of Aira's is left as it is
        record_scores(run, lines, settings.eval, settings.seed, chat)
        made = read_run(run)
        write_whole(run / "report.html", page([made], made.name))
        card = model_card(made.values, made.metrics, made.environment, made.evaluations)
        write_whole(run / "export" / "README.md", card)
    except (OSError, AiraError, LookupError, TypeError, ValueError, AttributeError) as error:  # it may be a stranger's
        print(f"Notice: the page and the card of {run} do not have these figures: {reason_of(error)}")


def _models(settings: Evaluate) -> dict[str, str]:
    """What is evaluated: paths by name."""
    found: dict[str, str] = {}
    for given in settings.models or [settings.model.path]:
        if given == "last":
            newest = next(exports(settings.output_dir), None)
            if newest is None:
                raise AiraError(
                    f"model.path=last: no run below {settings.output_dir}/ has an export. Train first (aira "
                    "train), or name a model: model.path=<folder or hub id>, or model=gpt2-124m."
                )
            paths = [str(newest)]
        elif "*" in given and not Path(given).exists():
            paths = [str(path) for path in matched(given, folders=True)]
            if not paths:
                raise AiraError(f"models=[{given}]: nothing has such a name.")
        else:
            paths = [given]
        for path in paths:
            located = Path(path).resolve() if Path(path).exists() else Path(path)
            parts = [part for part in located.parts if part != "export"]
            name = re.sub(r"[^\w.-]+", "-", parts[-1].removesuffix(".gguf")) if parts else "model"
            found[next(n for n in [name, *(f"{name}-{i}" for i in range(2, 1000))] if n not in found)] = path
    return found


def _purpose(path: str, config: PretrainedConfig, suite: Suite) -> str:
    """What a model is for: chat, reward or toxicity."""
    label = score_label(config)
    if label is None:
        return "chat"
    if label in PURPOSES:
        return PURPOSES[label]
    purposes = {SCORER_TASKS[task].purpose for task in suite.tasks if task in SCORER_TASKS}
    if purposes == {"toxicity"} and not suite.high_score:
        raise AiraError(
            f"{path} does not say what its score means (id2label is {config.id2label}): set eval.high_score=harmless "
            "(as the published ToxiGuardrail) or toxic."
        )
    if len(purposes) != 1:
        raise AiraError(
            f"{path} does not say what it is for (id2label is {config.id2label}): name a suite for it, such as "
            "eval=reward or eval=toxicity-en."
        )
    return purposes.pop()


def _sample_task(purpose: str, language: str) -> str:
    return f"sample_{ {'chat': 'answers', 'reward': 'preference', 'toxicity': 'labelled'}[purpose] }_{language}"


def _told(lines: list[Line], work: list[Any], settings: Evaluate, written: dict[str, Any], run: Path) -> dict[str, Any]:
    """Write and print the tables."""
    suite = settings.eval
    tasks = list(dict.fromkeys(task for *_, tasks in work for task in tasks))
    averaged = [task for task in tasks if task not in suite.not_averaged]
    for form, suffix in (("markdown", "md"), ("latex", "tex")):
        both = [table(lines, tasks, averaged, form), class_table(lines, tasks, form)]
        write_whole(run / f"table.{suffix}", "\n".join(filter(None, both)))
    figures = {line.name: line.more for line in lines if line.candidate}
    print("", table(lines, tasks, averaged, "plain"), class_table(lines, tasks, "plain"), sep="\n")
    for name, by_task in figures.items():
        for task, found in by_task.items():
            if "lower" in found:
                sure = "better than" if found["lower"] > 0 else "worse than" if found["upper"] < 0 else "not told from"
                print(
                    f"{name}, {task}: {sure} the best baseline, {100 * found['difference']:+.1f} points "
                    f"[{100 * found['lower']:+.1f}, {100 * found['upper']:+.1f}]"
                )
    print(f"Written to {shown(run)}/: table.md, table.tex, and for each model results.json and rows/")
    for logger in begin(settings.logger.parts(), "logger", Begun(run, written)):
        rows = [[line.name, *(str(line.scores.get(task, "")) for task in tasks)] for line in lines]
        log_table([logger], "evaluation", ["model", *tasks], rows)
        scalars = {f"eval/{n}/{t}/{k}": v for n, by in figures.items() for t, one in by.items() for k, v in one.items()}
        if isinstance(logger, Part):
            logger.evaluated(run, suite.name, [path for _, path, _, _ in work])
        logger.log_metrics(scalars)
        logger.finalize("success")
    return figures


def _compared(settings: Evaluate, run: Path) -> list[dict[str, Any]]:
    """Tell which of two evaluations is better."""
    found = compare(settings.compare, settings.seed)
    first, second = settings.compare
    if others := differing_settings(settings.compare):
        print(f"Not of the models alone, since the two were evaluated with other settings: {', '.join(others)}.")
    print(f"Second minus first, points with a paired 95 % interval:\n  first   {first}\n  second  {second}\n")
    for row in found:
        sure = "second is better" if row["low"] > 0 else "first is better" if row["high"] < 0 else "no difference told"
        print(
            f"  {row['task']:24} {100 * row['first']:6.2f} {100 * row['second']:6.2f}  {100 * row['difference']:+6.2f} "
            f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]  {row['rows']} rows: {sure}"
        )
    write_whole(run / "compare.json", as_json(found, indent=2) + "\n")
    return found
