"""The recipes of the published models: conf/experiment beside what was published.

tests/fixtures/recipes.csv has hyperparameters, energy and emissions by the cards of the published models
(https://huggingface.co/nicholasKluge), and by the scripts of https://github.com/Nkluge-correa/Aira where these are
silent; an empty field was not published.
"""

import csv
import functools
import json
import re

import pytest
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from aira.config.compose import compose_config
from aira.config.conf import CONF, options
from aira.config.record import flatten, to_dict
from aira.data.module import DataModule
from aira.errors import AiraError
from aira.evaluation.results import PUBLISHED
from aira.models.loading import load_tokenizer
from tests.end_to_end.command import ROOT, run, run_folder

FIXTURES = ROOT / "tests" / "fixtures"
DOCS = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def table(file):
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def recipe_name(model):
    """RewardModelPT is reward-model-pt."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", model).lower()


ROWS = {recipe_name(row["model"]): row for row in table(FIXTURES / "recipes.csv")}


@functools.cache
def values(*overrides):
    return to_dict(compose_config("train", list(overrides)))


def said(recipe):
    """What a recipe's file says in comments."""
    lines = (CONF / "experiment" / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


def same_base(path, cell):
    """The hub has since put the oldest checkpoints below their makers' names."""
    return path == cell if "/" in cell else path.endswith(f"/{cell}")


def same_data(data, cell):
    """One data set by its name; two are one file, whose options are held to the documentation below."""
    return data["path"] == cell if " + " not in cell else data["path"] == "./harmless-aira-hh.jsonl"


CHECKS = {
    "model": lambda found, cell, told: f"# {cell}: " in told,
    "method": lambda found, cell, told: found["method"]["name"] == cell,
    "language": lambda found, cell, told: found["language"]["code"] == cell,
    "base": lambda found, cell, told: same_base(found["model"]["path"], cell),
    "dataset": lambda found, cell, told: same_data(found["data"], cell),
    "split": lambda found, cell, told: found["data"]["split"] == ("train" if "hh" in found["data"]["name"] else cell),
    "epochs": lambda found, cell, told: not cell or found["trainer"]["max_epochs"] == int(cell),
    "steps": lambda found, cell, told: found["trainer"]["max_steps"] == int(cell or -1),
    "batch_size": lambda found, cell, told: found["data"]["batch_size"] == int(cell),
    "learning_rate": lambda found, cell, told: found["optimizer"]["lr"] == float(cell),
    "warmup_steps": lambda found, cell, told: found["schedule"]["warmup"] == int(cell),
    "parameters": lambda found, cell, told: f" {cell} parameters" in told,
    "kwh": lambda found, cell, told: f" {cell} kWh" in told,
    "kg_co2": lambda found, cell, told: f" {cell} kg of CO2" in told,
    "gpu": lambda found, cell, told: (
        f" one {cell}," in told and found["trainer"]["accelerator"] == "gpu" and found["trainer"]["devices"] == 1
    ),
}


def test_every_published_model_has_a_recipe():
    """Catches a published model without a recipe, a recipe without a source, and a column that nothing checks."""
    assert sorted(ROWS) == options("experiment")
    assert len(ROWS) == 18 and all(set(row) == set(CHECKS) for row in ROWS.values())


@pytest.mark.parametrize("recipe", ROWS)
def test_every_number_is_the_published_one(recipe):
    """Catches a hyperparameter that is not the published one, in the configuration, its comments or the docs."""
    found, told = values(f"experiment={recipe}"), said(recipe)
    assert [column for column, cell in ROWS[recipe].items() if not CHECKS[column](found, cell, told)] == []
    (line,) = [line for line in DOCS.splitlines() if line.startswith(f"| `{recipe}` | `")]
    cells = [cell.strip(" `") for cell in line.split("|")[2:-1]]
    columns = ["base", "dataset", "epochs", "steps", "batch_size", "learning_rate", "warmup_steps", "kwh", "kg_co2"]
    assert cells[: len(columns)] == [ROWS[recipe][column] for column in columns]
    assert cells[len(columns)] == (
        figures(ROWS[recipe]["model"]) or {"aira-2-124m-dpo": "in its card alone"}.get(recipe, "none")
    )


def figures(model):
    """What was published of a model, as comments and docs write it."""
    names = {"arc_challenge_25shot_acc_norm": "ARC", "truthfulqa_mc2": "TruthfulQA", "toxigen_acc_norm": "ToxiGen"}
    parts = [
        f"{names[column]} {row[column]}"
        for row in table(PUBLISHED / "chat.csv")
        for column in names
        if row["model"] == model and row[column] != "None"
    ]
    scorers = [row for row in table(PUBLISHED / "scorers.csv") if row["model"].removeprefix("Aira-") == model]
    return ", ".join([*parts, *(f"{row['benchmark']} {row['accuracy_percent']}" for row in scorers)])


@pytest.mark.parametrize("recipe", ROWS)
def test_expected_figures_are_the_published_ones(recipe):
    """Catches figures in a recipe's comments that are not those of the published tables."""
    told, model = said(recipe).replace("\n# ", " "), ROWS[recipe]["model"]
    if recipe == "aira-2-124m-dpo":  # in no table: the documentation has them from the same place
        assert told.split("Published, by its card alone: ")[1] in DOCS
        return
    expected = f"Published: {figures(model) or 'no figures'}"
    lines = [row["model"] for row in table(PUBLISHED / "chat.csv")]
    if model in lines:  # a line of the table is followed by that of its base
        base = lines[lines.index(model) + 1]
        expected += f"; of {base}: {figures(base)}"
    assert expected in told


SHARED = {
    "sft": {"optimizer.weight_decay": 0.01, "optimizer.max_grad_norm": 0, "schedule.name": "cosine"}
    | {"data.max_length": 600, "method.loss_on": "all", "model.dropout": None},
    "dpo": {"optimizer.weight_decay": 0, "optimizer.max_grad_norm": 1, "schedule.name": "cosine"}
    | {"data.max_length": 600, "method.beta": 0.8, "method.loss": "sigmoid", "model.dropout": 0},
    "reward": {"optimizer.weight_decay": 0, "optimizer.max_grad_norm": 1, "schedule.name": "linear"}
    | {"data.max_length": 400, "model.dropout": None},
    "toxicity": {"optimizer.weight_decay": 0, "optimizer.max_grad_norm": 1, "schedule.name": "linear"}
    | {"data.max_length": 512, "method.objective": "pairwise", "model.dropout": None},
}


@pytest.mark.parametrize("recipe", ROWS)
def test_what_the_scripts_share(recipe):
    """Catches a group's own value that wins over the recipe's, and a setting that only this project has."""
    found = dict(flatten(values(f"experiment={recipe}")))
    wanted = SHARED[ROWS[recipe]["method"]] | {"optimizer.eps": 1e-8, "trainer.precision": "32-true"}
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize("method", SHARED)
def test_recipes_add_no_key(method):
    """Catches a key that is misspelt in a recipe, and so set and never read."""
    known = dict(flatten(values(f"method={method}", f"model={'bert' if method == 'reward' else 'gpt2'}-tiny")))
    names = ["_base", f"_{method}", *(recipe for recipe, row in ROWS.items() if row["method"] == method)]
    for name in names:
        content = to_dict(OmegaConf.load(CONF / "experiment" / f"{name}.yaml"))
        assert [key for key, _ in flatten(content) if key not in known and key != "defaults"] == []


def test_the_command_line_wins():
    """Catches a recipe that cannot be changed."""
    changed = ["optimizer.lr=0.1", "model=gpt2-tiny", "data=sample", "trainer=cpu", "trainer.max_epochs=1"]
    found = values("experiment=aira-opt-1b3", *changed)
    assert found["optimizer"]["lr"] == 0.1 and found["trainer"]["max_epochs"] == 1
    assert found["trainer"]["accelerator"] == "cpu" and found["data"]["path"].startswith("pkg://")
    assert found["model"]["name"] == "gpt2-tiny" and found["model"]["path"].startswith("pkg://")


@pytest.mark.parametrize(
    "line, fragments",
    [
        (
            "experiment=aira-opt-1b3 language=pt",
            ["published only for language=en", "Published for pt are aira-2-portuguese-124m", "model=opt-1b3"],
        ),
        ("experiment=toxicity-model-pt language=en", ["published only for language=pt", "toxicity-model."]),
        ("experiment=reward-model language=pt", ["published only for language=en", "reward-model-pt"]),
        ("experiment=aira-2-124m method=dpo", ["made by method=sft", "model=gpt2-124m method=dpo language=en"]),
        ("experiment=aira-opt-1b4", ["there is no such experiment. Did you mean 'aira-opt-1b3'?"]),
        ("experiment=_sft", ["there is no such experiment"]),
        ("experimnt=aira-opt-1b3", ["Did you mean 'experiment'?"]),
    ],
)
def test_what_a_recipe_refuses(line, fragments):
    """Catches a recipe that runs under the name of a model that was never published."""
    with pytest.raises(AiraError) as caught:
        values(*line.split())
    assert all(fragment in str(caught.value) for fragment in fragments) and len(str(caught.value)) < 500


def test_the_file_of_two_data_sets(tmp_path, monkeypatch):
    """Catches lines in the documentation that do not write the file that data=harmless-aira-hh reads."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.S)
    for name in ("nicholasKluge/harmless-aira-dataset", "Anthropic/hh-rlhf"):
        assert name in code
        code = code.replace(name, str(FIXTURES / "hub" / name.split("/")[1]))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    rows = [json.loads(line) for line in (tmp_path / "harmless-aira-hh.jsonl").read_text().splitlines()]
    assert len(rows) == 6 + 6 and all(set(row) == {"chosen", "rejected"} for row in rows)
    tokenizer, _ = load_tokenizer("pkg://aira.models/tiny/encoder", architecture="encoder", head="score")
    settings = values("experiment=harmless-reward-model")["data"]
    data = DataModule(
        tokenizer,
        kind="preference",
        path=settings["path"],
        split=settings["split"],
        head="score",
        padded=True,
        cache_dir=str(tmp_path),
    )
    assert len(data.train) + len(data.validation) == 12
    (example,) = data.examples(data.train, data.train.index[:1])
    assert "Human:" not in str(example)


FEW = [
    *("trainer=cpu", "data=sample", "data.max_examples=64", "trainer.max_steps=2", "trainer.limit_val_batches=1"),
    *("trainer.log_every_n_steps=1", "callbacks.samples.max_new_tokens=4", "trainer.enable_progress_bar=false"),
    *("callbacks.samples.exact_match=0", "~callbacks.emissions"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, dropout", [("aira-2-124m", 0.1), ("aira-2-124m-dpo", 0.0), ("aira-2-portuguese-560m", None)]
)
def test_a_recipe_trains(tmp_path, recipe, dropout):
    """Catches a recipe that composes and does not run: with a tiny model and the sample in place of its own."""
    model = "model=gpt2-tiny"
    if dropout is None:  # BLOOM as it lies on the hub, small
        tokenizer, _ = load_tokenizer("pkg://aira.models/tiny/causal", template=None)
        shape = {"model_type": "bloom", "n_layer": 2, "hidden_size": 64, "n_head": 4, "vocab_size": len(tokenizer)}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).save_pretrained(tmp_path / "bloom")
        tokenizer.save_pretrained(tmp_path / "bloom")
        model = f"model.path={tmp_path / 'bloom'}"
    printed = run(f"experiment={recipe}", model, *FEW, f"cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    folder, row = run_folder(tmp_path), ROWS[recipe]
    assert f"2 steps of {row['batch_size']}; " in printed and f"{row['method']}: " in printed
    log = table(folder / "logs/version_0/metrics.csv")
    rates = [float(line["train/lr"]) for line in log if line["train/lr"]]
    assert rates == pytest.approx([float(row["learning_rate"]) * step / 100 for step in (1, 2)])
    if row["method"] == "dpo":
        losses = [float(line["train/loss"]) for line in log if line["train/loss"]]
        assert losses[0] == pytest.approx(0.6931472, abs=1e-6)
    config = json.loads((folder / "export/config.json").read_text())
    assert config.get("resid_pdrop") == dropout
