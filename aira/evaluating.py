"""An evaluation from its configuration to its tables: the whole story on one page."""

import glob
import hashlib
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.exceptions import DatasetNotFoundError
from hydra.core.hydra_config import HydraConfig
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from omegaconf import DictConfig
from sqlitedict import SqliteDict
from tqdm import tqdm
from transformers import PretrainedConfig

from aira.callbacks.emissions import energy, start_tracker
from aira.config import build, plain
from aira.data.schemas import HARMLESS, TOXIC, BadRow, Example
from aira.data.trees import Tree
from aira.environment import environment
from aira.errors import AiraError
from aira.evaluation.baselines import cross_fitted, pair_baselines, text_baselines
from aira.evaluation.harness import PackedLM
from aira.evaluation.results import Line, Score, class_table, compare, published, remember, table, write_rows
from aira.evaluation.scorers import ScoringModel
from aira.evaluation.statistics import beside, class_figures
from aira.evaluation.tasks import SCORER_TASKS, ScorerRow, check, harness_task, scorer_rows
from aira.files import newest_first, run_of_export, without_home
from aira.models.backbone import content, load_config, load_model, load_tokenizer, score_label
from aira.models.export import model_card
from aira.reports.page import page
from aira.reports.runs import read_run

ROLES = {"reward": "reward", "harmless": "toxicity"}
"""What a high score means, by `id2label`, and what the model is for."""

PORTION = 64
"""Examples of a scorer that are scored before they are kept on disk."""


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
    values = plain(cfg)
    run = (run or Path(HydraConfig.get().runtime.output_dir)).resolve()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if values["compare"]:
        return {"compare": _compared(values, run)}
    suite = values["eval"]
    where = {key: values["model"][key] for key in ("revision", "trust_remote_code")}
    shown = published(suite["published"])
    work = []
    for name, path in _models(values).items():  # every mistake is found before the first model is evaluated
        config, _ = load_config(path, vocab_size=0, role=None, head="score", **where)
        role = _role(path, config, suite)
        tasks = suite["tasks"] or [_sample_task(role, values["language"]["code"])]
        check(tasks, role, suite["data_dir"])
        work.append((name, path, role, tasks))

    lines: list[Line] = []
    for name, path, role, tasks in work:
        started, tracker = time.time(), start_tracker(values["country"])
        folder = run / name
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        try:
            measure = _chat if role == "chat" else _scorer
            found, results = measure(name, path, tasks, values, where, folder / "rows")
        finally:
            emissions = energy(tracker, stop=True)
        results["aira"] = {
            "model": path,
            "role": role,
            "config": values,
            "environment": environment(),
            "seconds": time.time() - started,
            **emissions,
        }
        text = without_home(json.dumps(results, indent=2, default=str))
        (folder / "results.json").write_text(f"{text}\n", encoding="utf-8")
        lines += found
        _remembered(path, found, suite["limit"])
    return _told(lines + shown, work, values, run)


def _remembered(path: str, lines: list[Line], limit: int | None) -> None:
    """Let the run whose export was evaluated know: its evaluations.jsonl, its page and its card."""
    run = run_of_export(path)
    if run is None:
        return
    try:
        remember(run, lines, limit)
        made = read_run(run)
        (run / "report.html").write_text(page([made], made.name), encoding="utf-8")
        card = model_card(made.values, made.metrics, made.environment, made.evaluations)
        (run / "export" / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        print(f"Notice: the run's own page does not have these figures, since {run} cannot be written to: {error}.")


def _models(values: dict[str, Any]) -> dict[str, str]:
    """What is evaluated: paths by name."""
    found: dict[str, str] = {}
    for given in values["models"] or [values["model"]["path"]]:
        if given == "last":
            exports = newest_first(values["output_dir"], "*/*/export/config.json")
            if not exports:
                raise AiraError(
                    f"model.path=last: no run below {values['output_dir']}/ has an export. Train first (python "
                    "train.py), or name a model: model.path=<folder or hub id>, or model=gpt2-124m."
                )
            paths = [str(exports[0].parent)]
        elif "*" in given:
            paths = sorted(glob.glob(given))
            if not paths:
                raise AiraError(f"models=[{given}]: nothing has such a name.")
        else:
            paths = [given]
        for path in paths:
            parts = [part for part in Path(path).parts if part != "export"]
            name = re.sub(r"[^\w.-]+", "-", parts[-1].removesuffix(".gguf")) if parts else "model"
            found[next(n for n in [name, *(f"{name}-{i}" for i in range(2, 1000))] if n not in found)] = path
    return found


def _role(path: str, config: PretrainedConfig, suite: dict[str, Any]) -> str:
    """What a model is for: chat, reward or toxicity."""
    label = score_label(config)
    if label is None:
        return "chat"
    if label in ROLES:
        return ROLES[label]
    roles = {SCORER_TASKS[task].role for task in suite["tasks"] if task in SCORER_TASKS}
    if roles == {"toxicity"} and not suite["high_score"]:
        raise AiraError(
            f"{path} does not say what its score means (id2label is {config.id2label}): set eval.high_score=harmless "
            "(as the published ToxiGuardrail) or toxic."
        )
    if len(roles) != 1:
        raise AiraError(
            f"{path} does not say what it is for (id2label is {config.id2label}): name eval=reward or alike."
        )
    return roles.pop()


def _sample_task(role: str, language: str) -> str:
    return f"sample_{ {'chat': 'answers', 'reward': 'preference', 'toxicity': 'labelled'}[role] }_{language}"


def _autocast(suite: dict[str, Any]) -> torch.dtype | None:
    return {"32-true": None, "bf16-mixed": torch.bfloat16}[suite["precision"]]


def _device(values: dict[str, Any]) -> str:
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return automatic if values["device"] == "auto" else values["device"]


def _store(values: dict[str, Any], model: torch.nn.Module, kind: str) -> Path:
    """Where the answers of a model are kept: by its weights and by what else they depend on."""
    suite = values["eval"]
    parts = f"{content(model)} {kind} {suite['precision']} {suite['max_length']} {suite['chat_template']}"
    folder = Path(values["cache_dir"]).expanduser() / "evaluated"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(parts.encode()).hexdigest()[:32]


def _chat(
    name: str, path: str, tasks: list[str], values: dict[str, Any], where: dict[str, Any], rows: Path
) -> tuple[list[Line], dict[str, Any]]:
    """A language model, by lm-evaluation-harness."""
    suite = values["eval"]
    tokenizer, added = load_tokenizer(path, template=None, **where)
    if suite["chat_template"] and not tokenizer.chat_template:
        raise AiraError(f"{path} has no chat template: eval.chat_template=false asks it plainly.")
    model = load_model(path, tokenizer, added, **where).to(_device(values))
    language = PackedLM(model, tokenizer, suite["tokens_per_row"], _autocast(suite), max_length=suite["max_length"])
    manager, shots = TaskManager(), suite["num_fewshot"]
    try:
        found = simple_evaluate(
            language,
            tasks=[harness_task(task, shots.get(task), suite["data_dir"], manager) for task in tasks],
            task_manager=manager,
            limit=suite["limit"],
            use_cache=str(
                _store(values, model, f"lm {tokenizer.chat_template} {tokenizer.backend_tokenizer.to_str()}")
            ),
            apply_chat_template=suite["chat_template"],
            fewshot_random_seed=1234 + values["seed"],
            bootstrap_iters=1000,
        )
    except (ConnectionError, DatasetNotFoundError) as error:
        raise AiraError(
            f"The data of {', '.join(tasks)} could not be read from the hub: {error}. eval.data_dir=<folder> reads "
            "files instead, for the tasks of docs/evaluation.md."
        ) from error
    line = Line(name, {}, candidate=True)
    for task in tasks:
        figures = found["results"][task]
        key = _main_figure(figures)
        metric, _, chosen = key.partition(",")
        stderr = figures.get(f"{metric}_stderr,{chosen}")
        stderr = stderr if isinstance(stderr, float) and stderr > 0 else None
        percent = metric in ("acc", "acc_norm", "exact_match", "f1")
        line.scores[task] = Score(figures[key], stderr=stderr, percent=percent)
        line.more[task] = {
            key.removesuffix(",none"): value for key, value in figures.items() if isinstance(value, (int, float))
        }
        samples = found["samples"].get(task, [{}])  # a group of tasks has none
        samples = [one for one in samples if one.get("filter", chosen) == chosen] or [{}]
        if isinstance(samples[0].get(metric), (int, float)):
            write_rows(
                rows, task, {"row": [s["doc_id"] for s in samples], "value": [float(s[metric]) for s in samples]}
            )
    results = {key: value for key, value in found.items() if key != "samples"}
    return [line], results


def _main_figure(figures: dict[str, Any]) -> str:
    """The key, `<metric>,<filter>`, that stands in the table: length-normalised accuracy, accuracy, or the first."""
    names = [key for key, value in figures.items() if isinstance(value, (int, float)) and "," in key]
    names = [key for key in names if "_stderr," not in key]
    return next(name for name in ["acc_norm,none", "acc,none", *names] if name in names)


def _scorer(
    name: str, path: str, tasks: list[str], values: dict[str, Any], where: dict[str, Any], rows: Path
) -> tuple[list[Line], dict[str, Any]]:
    """A reward or toxicity model, beside simple baselines on the same rows."""
    suite, seed = values["eval"], values["seed"]
    scorer = ScoringModel(
        path, _device(values), suite["max_length"], suite["tokens_per_row"], _autocast(suite), **where
    )
    lines = {name: Line(name, {}, candidate=True)}
    file = f"{_store(values, scorer.model, 'scores')}.db"
    with SqliteDict(file, autocommit=True, encode=json.dumps, decode=json.loads) as kept:
        for task in tasks:
            usable, trees = _encoded(task, scorer, values)
            numbers, examples, keys = map(list, zip(*usable))
            scores = np.array(_scored(scorer, trees, kept, task))
            groups = np.array(keys)
            if SCORER_TASKS[task].role == "reward":
                right, figures = _pairs(name, examples, scores, groups)
            else:
                sign = -1 if suite["high_score"] == "toxic" and scorer.meaning not in ROLES else 1
                right, figures = _texts(name, examples, sign * scores, groups, sign * scorer.threshold)
            for system, figure in beside(right, groups, seed).items():
                line = lines.setdefault(system, Line(system, {}))
                line.scores[task] = Score(figure["accuracy"], figure["low"], figure["high"])
                line.more[task] = figure | figures.get(system, {})
            columns = {"row": numbers, "value": right[name].tolist(), "group": keys}
            write_rows(rows, task, columns | {"scores": scores.tolist()})
    found = {task: {system: line.more[task] for system, line in lines.items()} for task in tasks}
    results = {"results": {task: found[task][name] for task in tasks}, "baselines": found}
    return list(lines.values()), results


def _encoded(task: str, scorer: ScoringModel, values: dict[str, Any]) -> tuple[list[ScorerRow], list[Tree]]:
    suite = values["eval"]
    rows, said = scorer_rows(task, suite["data_dir"], suite["limit"], values["seed"], values["cache_dir"])
    usable: list[ScorerRow] = []
    trees: list[Tree] = []
    dropped: dict[str, int] = {}
    for row in rows:
        try:
            trees.append(scorer.encode(row.example.conversations))
            usable.append(row)
        except BadRow as problem:
            reason = str(problem).partition(" (")[0]
            dropped[reason] = dropped.get(reason, 0) + 1
    for line in [*said, *(f"{task}: dropped {count} rows: {reason}." for reason, count in dropped.items())]:
        print(line)
    if not usable:
        raise AiraError(f"The task {task} has no usable row.")
    return usable, trees


def _scored(scorer: ScoringModel, trees: list[Tree], kept: SqliteDict, task: str) -> list[list[float]]:
    """Scores of all trees, of which those that were computed before are read."""
    names = [hashlib.sha256(json.dumps(tree.branches).encode()).hexdigest() for tree in trees]
    missing = [i for i, one in enumerate(names) if one not in kept]
    missing.sort(key=lambda i: -sum(map(len, trees[i].branches)))
    with tqdm(total=len(trees), initial=len(trees) - len(missing), desc=task, leave=False) as bar:
        for start in range(0, len(missing), PORTION):
            portion = missing[start : start + PORTION]
            for i, found in zip(portion, scorer.score([trees[i] for i in portion]), strict=True):
                kept[names[i]] = found
            bar.update(len(portion))
    return [kept[one] for one in names]


Figures = dict[str, dict[str, float]]


def _pairs(
    name: str, examples: list[Example], scores: np.ndarray, groups: np.ndarray
) -> tuple[dict[str, Any], Figures]:
    """Whether each system finds the better response."""
    pairs = [(one.conversations[0][-1]["content"], one.conversations[1][-1]["content"]) for one in examples]
    better, worse = scores.T
    right = {name: np.where(better == worse, 0.5, better > worse), "chance": np.full(len(pairs), 0.5)}
    right |= cross_fitted(lambda a, b: pair_baselines([pairs[i] for i in a], [pairs[i] for i in b]), groups)
    return right, {name: {"margin": float((better - worse).mean())}}


def _texts(
    name: str, examples: list[Example], scores: np.ndarray, groups: np.ndarray, threshold: float
) -> tuple[dict[str, Any], Figures]:
    """Whether each system gives a text its class, with further figures of the classes."""
    texts = [one.conversations[0][-1]["content"] for one in examples]
    labels = np.array([one.labels[0] for one in examples])
    predicted = {name: np.where(scores[:, 0] < threshold, TOXIC, HARMLESS)}
    predicted["majority"] = np.full(len(labels), np.bincount(labels).argmax())
    predicted |= cross_fitted(
        lambda a, b: text_baselines([texts[i] for i in a], labels[a], [texts[i] for i in b]), groups
    )
    right = {system: (classes == labels).astype(float) for system, classes in predicted.items()}
    return right, {system: class_figures(classes, labels) for system, classes in predicted.items()}


def _told(lines: list[Line], work: list[Any], values: dict[str, Any], run: Path) -> dict[str, Any]:
    """Write and print the tables."""
    suite = values["eval"]
    tasks = list(dict.fromkeys(task for *_, tasks in work for task in tasks))
    averaged = [task for task in tasks if task not in suite["not_averaged"]]
    for form, suffix in (("markdown", "md"), ("latex", "tex")):
        both = [table(lines, tasks, averaged, form), class_table(lines, tasks, form)]
        (run / f"table.{suffix}").write_text("\n".join(filter(None, both)), encoding="utf-8")
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
    shown = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
    print(f"Written to {shown}/: table.md, table.tex, and for each model results.json and rows/")
    for part in values["logger"].values():
        logger = build(part, run=run, values=values)
        if hasattr(logger, "log_table"):
            data = [[line.name, *(str(line.scores.get(task, "")) for task in tasks)] for line in lines]
            logger.log_table("evaluation", columns=["model", *tasks], data=data)
        scalars = {f"eval/{n}/{t}/{k}": v for n, by in figures.items() for t, one in by.items() for k, v in one.items()}
        if hasattr(logger, "log_export"):
            for _, path, _, _ in work:
                logger.log_input("model", path)
            logger.log_files(f"evaluation-{suite['name']}", "evaluation", run, sorted(run.glob("*/results.json")))
        logger.log_metrics(scalars)
        logger.finalize("success")
    return figures


def _compared(values: dict[str, Any], run: Path) -> list[dict[str, Any]]:
    """Tell which of two evaluations is better."""
    found = compare(values["compare"], values["seed"])
    first, second = values["compare"]
    print(f"Second minus first, points with a paired 95 % interval:\n  first   {first}\n  second  {second}\n")
    for row in found:
        sure = "second is better" if row["low"] > 0 else "first is better" if row["high"] < 0 else "no difference told"
        print(
            f"  {row['task']:24} {100 * row['first']:6.2f} {100 * row['second']:6.2f}  {100 * row['difference']:+6.2f} "
            f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]  {row['rows']} rows: {sure}"
        )
    run.mkdir(parents=True, exist_ok=True)
    (run / "compare.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found
