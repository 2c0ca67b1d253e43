"""An evaluation from its configuration to its tables."""

import logging
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from transformers import PretrainedConfig

from aira.callbacks.emissions import energy, start_tracker
from aira.config.compose import typed_settings
from aira.config.record import to_dict_without_env, write_config
from aira.config.schema import Evaluate, Suite
from aira.environment import environment
from aira.errors import AiraError, reason_of
from aira.evaluation.measure import PURPOSES, chat, scorer
from aira.evaluation.results import (
    Line,
    class_table,
    compare,
    differing_settings,
    models_by_name,
    published_lines,
    record_scores,
    table,
)
from aira.evaluation.tasks import SCORER_TASKS, check
from aira.files import as_json, display_path, run_of_export, without_home, write_atomically
from aira.models.export import model_card
from aira.models.families import context_length, score_label
from aira.models.loading import load_config
from aira.parts import Part, RunStart, build_parts, log_table
from aira.reports.page import page
from aira.reports.runs import read_run


def evaluate(cfg: DictConfig, run: Path | None = None) -> dict[str, Any]:
    """Evaluate models, and print their scores next to baselines and published figures.

    Args:
        cfg: composed from conf/evaluate.yaml.
        run: the folder for everything that is written; by default Hydra's.

    Returns:
        For each model its figures by task.

    Raises:
        AiraError: something that the user can fix; what was scored until then is kept.
    """
    settings, config, by_hydra = typed_settings(cfg, Evaluate), to_dict_without_env(cfg), run is None
    run = (run or Path(HydraConfig.get().runtime.output_dir)).resolve()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if settings.compare:
        comparison = {"compare": _compare(settings, run)}
        if by_hydra:
            write_config(run, config)
        return comparison
    suite, hub = settings.eval, settings.model
    options: dict[str, Any] = {"revision": hub.revision, "trust_remote_code": hub.trust_remote_code}
    references = published_lines(suite.published)
    work = []
    for name, path in models_by_name(settings).items():  # all are checked before the first one is evaluated
        model_config, _ = load_config(path, vocab_size=0, architecture=None, head="score", **options)
        if (suite.max_length or 0) > context_length(model_config):
            raise AiraError(
                f"eval.max_length={suite.max_length}: the context of {path} is {context_length(model_config)} tokens. "
                "Set it to that, or less."
            )
        purpose = _purpose(path, model_config, suite)
        tasks = suite.tasks or [_sample_task(purpose, settings.language.code)]
        check(tasks, purpose, suite.data_dir)
        work.append((name, path, purpose, tasks))

    lines: list[Line] = []
    if by_hydra:
        write_config(run, config)
    for name, path, purpose, tasks in work:
        started, tracker = time.time(), start_tracker(settings.country)
        folder = run / name
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        try:
            measure = chat if purpose == "chat" else scorer
            model_lines, results = measure(name, path, tasks, settings, options, folder / "rows")
        finally:
            emissions = energy(tracker, stop=True)
        results["aira"] = {
            "model": path,
            "purpose": purpose,
            "config": config,
            "environment": environment(),
            "seconds": time.time() - started,
            **emissions,
        }
        text = without_home(as_json(results, indent=2, default=str))
        write_atomically(folder / "results.json", f"{text}\n")
        lines += model_lines
        _update_run(path, model_lines, settings, chat=purpose == "chat")
    return _report(lines + references, work, settings, config, run)


def _update_run(path: str, lines: list[Line], settings: Evaluate, chat: bool) -> None:
    """Add the figures to the run whose export was evaluated: to its evaluations.jsonl, its page and its card."""
    run = run_of_export(path)
    if run is None:
        return
    try:
        read_run(run)  # fails for a folder that is no run of Aira's, which is left unchanged
        record_scores(run, lines, settings.eval, settings.seed, chat)
        evaluated = read_run(run)
        write_atomically(run / "report.html", page([evaluated], evaluated.name))
        card = model_card(evaluated.values, evaluated.metrics, evaluated.environment, evaluated.evaluations)
        write_atomically(run / "export" / "README.md", card)
    except (
        OSError,
        AiraError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # it may not be one of Aira's
        print(f"Notice: the page and the card of {run} do not have these figures: {reason_of(error)}")


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


def _report(
    lines: list[Line], work: list[Any], settings: Evaluate, config: dict[str, Any], run: Path
) -> dict[str, Any]:
    """Write, print and log the tables."""
    suite = settings.eval
    tasks = list(dict.fromkeys(task for *_, tasks in work for task in tasks))
    averaged = [task for task in tasks if task not in suite.not_averaged]
    for form, suffix in (("markdown", "md"), ("latex", "tex")):
        both = [table(lines, tasks, averaged, form), class_table(lines, tasks, form)]
        write_atomically(run / f"table.{suffix}", "\n".join(filter(None, both)))
    figures = {line.name: line.more for line in lines if line.candidate}
    print("", table(lines, tasks, averaged, "plain"), class_table(lines, tasks, "plain"), sep="\n")
    for name, by_task in figures.items():
        for task, scores in by_task.items():
            if "lower" in scores:
                low, high = scores["lower"], scores["upper"]
                verdict = "better than" if low > 0 else "worse than" if high < 0 else "not clearly different from"
                print(
                    f"{name}, {task}: {verdict} the best baseline, {100 * scores['difference']:+.1f} points "
                    f"[{100 * low:+.1f}, {100 * high:+.1f}]"
                )
    print(f"Written to {display_path(run)}/: table.md, table.tex, and for each model results.json and rows/")
    for logger in build_parts(settings.logger.parts(), "logger", RunStart(run, config)):
        rows = [[line.name, *(str(line.scores.get(task, "")) for task in tasks)] for line in lines]
        log_table([logger], "evaluation", ["model", *tasks], rows)
        scalars = {f"eval/{n}/{t}/{k}": v for n, by in figures.items() for t, one in by.items() for k, v in one.items()}
        if isinstance(logger, Part):
            logger.on_evaluation(run, suite.name, [path for _, path, _, _ in work])
        logger.log_metrics(scalars)
        logger.finalize("success")
    return figures


def _compare(settings: Evaluate, run: Path) -> list[dict[str, Any]]:
    """Print which of two evaluations is better on each task."""
    rows = compare(settings.compare, settings.seed)
    first, second = settings.compare
    if others := differing_settings(settings.compare):
        print(f"Not only the models differ: the two were evaluated with other settings: {', '.join(others)}.")
    print(f"Second minus first, points with a paired 95 % interval:\n  first   {first}\n  second  {second}\n")
    for row in rows:
        verdict = (
            "first is better" if row["high"] < 0 else "second is better" if row["low"] > 0 else "no clear difference"
        )
        print(
            f"  {row['task']:24} {100 * row['first']:6.2f} {100 * row['second']:6.2f}  {100 * row['difference']:+6.2f} "
            f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]  {row['rows']} rows: {verdict}"
        )
    write_atomically(run / "compare.json", as_json(rows, indent=2) + "\n")
    return rows
