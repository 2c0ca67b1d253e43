"""A score that is no number is no score: an error that names the model and the row, or a figure that is left out."""

import json
import math
import sqlite3

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from aira.chat.pipeline import Chat
from aira.commands.rejection_sampling import _read, _read_answers
from aira.config.compose import compose_config
from aira.errors import AiraError
from aira.evaluating import evaluate
from aira.evaluation.harness import PackedLM
from aira.evaluation.results import compare, write_rows
from aira.evaluation.statistics import class_figures
from aira.evaluation.tasks import HARNESS_TASKS, file_rows
from aira.files import as_json
from aira.inference.generation import answer
from aira.inference.scorers import ScoringModel
from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer
from tests.evaluation.test_harness import SHAPES, loaded, requests

TINY = "pkg://aira.models/tiny/causal"
NAN, INF = float("nan"), float("inf")


def made(folder, head, label=None, weight=1.0, **configuration):
    """An export; a large weight of the last normalisation is a number itself, and no output of the model is one."""
    tokenizer, added = load_tokenizer(TINY, head=head)
    torch.manual_seed(0)
    model = load_model(TINY, tokenizer, added, head=head, label=label, config={**SHAPES["gpt2"], "n_positions": 512})
    with torch.no_grad():
        model.transformer.ln_f.weight *= weight
    for name, value in configuration.items():
        setattr(model.config, name, value)
    export(model, tokenizer, folder, "card")
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for weight, state in ((1.0, "sound"), (3e38, "broken")):
        for purpose, head, label in (
            ("chat", "lm", None),
            ("reward", "score", "reward"),
            ("toxicity", "score", "harmless"),
        ):
            found[state, purpose] = made(folder / f"{state}-{purpose}", head, label, weight)
    return found


@pytest.mark.parametrize("number", [NAN, INF])
@pytest.mark.parametrize("name", SHAPES)
def test_a_log_likelihood_that_is_no_number(name, number):
    """Catches an answer made of NaN, of which the harness takes the first choice, here the right one."""
    model, tokenizer = loaded(name)
    language = PackedLM(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = number
    asked = requests()[:2]
    for request in asked:
        request.task_name, request.doc_id = "some_task", 7
    with pytest.raises(AiraError, match=rf"{TINY}.*|no number.*task some_task, row 7"):
        language.loglikelihood(asked, disable_tqdm=True)
    with pytest.raises(AiraError, match="no number"):
        language.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("A text.",), 0)], disable_tqdm=True)


@pytest.mark.parametrize("number", [NAN, INF])
def test_an_answer_to_the_harness_that_is_made_of_no_numbers(number):
    """Catches a generated answer of NaN, of which greedy decoding takes any token."""
    model, tokenizer = loaded("gpt2")
    language = PackedLM(model, tokenizer)
    asked = [Instance("generate_until", {}, ("Is it so?", {"until": ["\n"], "max_gen_toks": 4}), 0)]
    assert len(language.generate_until(asked, disable_tqdm=True)) == 1
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = number
    with pytest.raises(AiraError, match="cannot answer: its logits are NaN or infinite"):
        language.generate_until(asked, disable_tqdm=True)


@pytest.mark.parametrize("bias, sound", [(-INF, True), (INF, False), (NAN, False)])
def test_an_impossible_token_is_a_number(bias, sound):
    """Catches a token of probability 0 that is refused, and one that makes all others impossible and is not."""
    model, tokenizer = loaded("llama")
    head, asked = model.get_output_embeddings(), tokenizer.encode(" No", add_special_tokens=False)
    head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor(asked[-1:]), bias))
    language, pairs = PackedLM(model, tokenizer), [("Is it so?", " No"), ("Is it so?", " Yes")]
    found = [Instance("loglikelihood", {}, pair, i, metadata=("task", i, 1)) for i, pair in enumerate(pairs)]
    conversation = [[{"role": "user", "content": "Is it so?"}]]
    if sound:
        (no, _), (yes, _) = language.loglikelihood(found, disable_tqdm=True)
        assert no == -INF and math.isfinite(yes)
        assert "No" not in answer(model, tokenizer, conversation, 5)[0][0]
    else:
        with pytest.raises(AiraError, match=r"no number .*Is it so\\?.*"):
            language.loglikelihood(found, disable_tqdm=True)
        for sampling in ({}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.1}):
            with pytest.raises(AiraError, match="cannot answer: its logits are NaN or infinite"):
                answer(model, tokenizer, conversation, 5, **sampling)


@pytest.mark.parametrize("kept", [(NAN, True), [NAN, False], NAN, (INF, True), [], (None, True), None])
def test_a_kept_answer_that_is_no_number_is_asked_again(tmp_path, kept):
    """Catches an answer of an earlier evaluation that is taken for a number; others stay."""
    model, tokenizer = loaded("gpt2")
    (request,) = [Instance("loglikelihood", {}, ("Is it so?", " No"), 0)]
    first = CachingLM(PackedLM(model, tokenizer), str(tmp_path / "kept.db"))
    (expected,) = first.loglikelihood([request])
    for key in list(first.dbdict):
        first.dbdict[key] = kept
    first.dbdict["other"] = (-1.0, True)
    first.dbdict.close()
    again = CachingLM(PackedLM(model, tokenizer), str(tmp_path / "kept.db"))
    assert again.loglikelihood([request]) == [expected] and again.dbdict["other"] == (-1.0, True)


@pytest.mark.parametrize("purpose", ["chat", "reward", "toxicity"])
def test_a_model_of_no_numbers_is_not_evaluated(models, tmp_path, purpose):
    """Catches 100.00 for a language model, 0.00 for a reward and 50.00 for a toxicity model of NaN."""
    path, given = models["broken", purpose], ["eval.limit=8", f"cache_dir={tmp_path}/cache"]
    with pytest.raises(AiraError, match=rf"broken-{purpose}.*(no number|NaN).*") as told:
        evaluate(compose_config("evaluate", [f"model.path={path}", *given]), tmp_path / "run")
    assert "row " in str(told.value) and "sample_" in str(told.value)
    assert not list(tmp_path.rglob("results.json")) and not list(tmp_path.rglob("rows/*.jsonl"))


@pytest.mark.parametrize("purpose", ["reward", "toxicity"])
def test_a_kept_score_that_is_no_number_is_made_again(models, tmp_path, purpose):
    """Catches scores in the store that are trusted though they are no numbers."""
    given = [f"model.path={models['sound', purpose]}", "eval.limit=8", f"cache_dir={tmp_path}/cache"]
    expected = evaluate(compose_config("evaluate", given), tmp_path / "first")
    (file,) = (tmp_path / "cache" / "evaluated").glob("*.db")
    kept = ["[NaN]", "[NaN, NaN]", "[Infinity, -Infinity]", "[null]", "null", "[]", '["1.0"]', "[1.0, 2.0, 3.0]"]
    with sqlite3.connect(file) as store:
        keys = [key for (key,) in store.execute("SELECT key FROM unnamed")]
        store.executemany("UPDATE unnamed SET value = ? WHERE key = ?", list(zip(kept, keys, strict=True)))
    store.close()
    assert evaluate(compose_config("evaluate", given), tmp_path / "again") == expected


def test_scores_and_thresholds_that_are_no_numbers(models, tmp_path):
    """Catches scores of NaN, and a threshold of NaN, by which a guard lets everything pass."""
    for purpose in ("reward", "toxicity"):
        scorer = ScoringModel(models["broken", purpose])
        with pytest.raises(AiraError, match=rf"broken-{purpose} gives a text \('Hello there"):
            scorer.score([scorer.encode([[{"role": "assistant", "content": "Hello there."}]])])
    for number in (NAN, INF, -INF):
        folder = made(tmp_path / str(number), "score", "harmless", threshold=number)
        with pytest.raises(AiraError, match=r"threshold in its config\.json is"):
            ScoringModel(folder)
        with pytest.raises(AiraError, match="threshold_logit"):
            Chat(models["sound", "chat"], toxicity_model=models["sound", "toxicity"], threshold_logit=number)


@pytest.mark.parametrize("broken", ["chat", "reward", "toxicity"])
def test_a_chat_with_a_model_of_no_numbers(models, broken):
    """Catches an answer that was chosen by NaN, and NaN in a script's JSON."""
    paths = [models["broken" if purpose == broken else "sound", purpose] for purpose in ("chat", "reward", "toxicity")]
    chat = Chat(*paths, n=2, temperature=1.0, max_new_tokens=4)
    with pytest.raises(AiraError, match=f"broken-{broken}"):
        chat.reply("Who are you?")


def test_rewards_in_a_part_that_are_no_numbers(tmp_path):
    """Catches a best answer that was chosen by NaN before a stop, and is kept after it."""
    for number in (NAN, INF, None):
        rewards = ([1.0, 2.0], [1.0, number])
        rows = [{"prompt": "?", "candidates": [{"text": "a", "reward": one} for one in several]} for several in rewards]
        (tmp_path / "000000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(AiraError, match=r"000000\.jsonl, row 2: a reward is no number"):
            _read(tmp_path / "000000.jsonl")


ANSWER = '{"text": "a", "fate": "chosen", "harmless": null, "reward": %s}'
PARTS = {
    "cut off": ('{"prompt": "?", "cand', "other prompts"),
    "cut off before an end": ('{"prompt": "?", "cand\n', "is damaged"),
    "empty": ("", "other prompts"),
    "a list": ("[]\n", "is damaged"),
    "null": ("null\n", "is damaged"),
    "without candidates": ('{"prompt": "?"}\n', "is damaged"),
    "candidates that are texts": ('{"prompt": "?", "candidates": ["a"]}\n', "is damaged"),
    "an answer without a fate": ('{"prompt": "?", "candidates": [{"text": "a", "reward": 1}]}\n', "is damaged"),
    "a reward in words": ('{"prompt": "?", "candidates": [%s]}\n' % (ANSWER % '"x"'), "a reward is no number"),
    "another prompt": ('{"prompt": "!", "candidates": [%s]}\n' % (ANSWER % 1), "other prompts"),
    "twice the prompt": (2 * '{"prompt": "?", "candidates": [%s]}\n' % ((ANSWER % 1,) * 2), "other prompts"),
    "no text": ("\udce9\n", "is damaged"),
    "deep": ("[" * 50_000 + "\n", "is damaged"),
}


@pytest.mark.parametrize("content, told", PARTS.values(), ids=PARTS)
def test_a_damaged_part_of_a_sampling(tmp_path, content, told):
    """Catches a traceback, and tables that are made of fewer or other prompts than those that were asked."""
    (tmp_path / "000000.jsonl").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(AiraError, match=rf"000000\.jsonl.*{told}.*Delete the file"):
        _read_answers(tmp_path / "000000.jsonl", ["?"])


ROWS = {
    "cut off": '{"row": 0, "val\n',
    "a list": "[]\n",
    "null": "null\n",
    "without a number": '{"value": 1}\n',
    "without a figure": '{"row": 0}\n',
    "a number that is a list": '{"row": [0], "value": 1}\n',
    "a figure in words": '{"row": 0, "value": "x"}\n',
    "a figure that is a list": '{"row": 0, "value": [1, 2]}\n',
    "a group that is a list": '{"row": 0, "value": 1, "group": [1]}\n',
    "a row twice": '{"row": 0, "value": 1}\n{"row": 0, "value": 0}\n',
    "no text": "\udce9\n",
    "deep": "[" * 50_000 + "\n",
}


@pytest.mark.parametrize("content", ROWS.values(), ids=ROWS)
def test_damaged_rows_are_not_compared(tmp_path, content):
    """Catches a traceback, and a difference that is made of rows that are no rows of an evaluation."""
    for name in ("first", "second"):
        (tmp_path / name / "rows").mkdir(parents=True)
        write_rows(tmp_path / name / "rows", "task", {"row": [0], "value": [1.0]})
    (tmp_path / "second/rows/task.jsonl").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(AiraError, match=r"second/rows/task\.jsonl is damaged, or no file of an evaluation"):
        compare([str(tmp_path / "first"), str(tmp_path / "second")], seed=0)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "null"])
def test_rows_of_no_numbers_are_not_compared(tmp_path, number):
    """Catches `no difference told` of two evaluations of which one has no figure."""
    for name in ("first", "second"):
        (tmp_path / name / "rows").mkdir(parents=True)
        write_rows(tmp_path / name / "rows", "task", {"row": [0, 1], "value": [1.0, 0.0]})
    (tmp_path / "second/rows/task.jsonl").write_text(f'{{"row": 0, "value": 1.0}}\n{{"row": 1, "value": {number}}}\n')
    with pytest.raises(AiraError, match="task, row 1: there is a value that is no number"):
        compare([str(tmp_path / "first"), str(tmp_path / "second")], seed=0)


@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("predicted", [0, 1])
def test_figures_of_one_class(only, predicted):
    """Catches an F1 of 0, or a balanced accuracy, where a class has no row."""
    figures = class_figures(np.full(4, predicted), np.full(4, only))
    assert figures == {"accuracy": float(predicted == only)}


@pytest.mark.parametrize("rating", ["nan", "", "NA", "inf", "-"])
def test_a_rating_that_is_no_number(tmp_path, rating):
    """Catches a statement that nobody has rated and that the harness, by NaN > 5.5, takes to be harmless."""
    file = tmp_path / "toxigen_annotated_train.csv"
    file.write_text(f"text,toxicity_ai,toxicity_human\na,1.0,5\nb,4.0,{rating}\n")
    with pytest.raises(AiraError, match=r"toxigen_annotated_train\.csv, row 2: .*toxicity_human is not a number"):
        file_rows(file, HARNESS_TASKS["toxigen"].row)
    file.write_text("text,toxicity_ai\na,1.0\n")
    with pytest.raises(AiraError, match=r"row 1: .*there is no 'toxicity_human'"):
        file_rows(file, HARNESS_TASKS["toxigen"].row)


def test_json_has_no_nan():
    """Catches JSON that only Python reads."""
    value = {"a": NAN, "b": [1.0, INF, {"c": (-INF, np.float64("nan"), "NaN")}], "d": 1}
    told = as_json(value)
    assert json.loads(told, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.0, None, {"c": [None, None, "NaN"]}],
        "d": 1,
    }
