"""The commands of the README, from the command line to an export that needs no Aira."""

import json
import subprocess
import sys

import pytest

from tests.end_to_end.command import ENVIRONMENT, SMALL, run, run_folder
from tests.wandb_records import artifacts, records

CHAT = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "aira" not in sys.modules
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
asked = [{"role": "user", "content": sys.argv[2]}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def chat(export, question):
    """Ask an export with plain Transformers, in a process that does not know Aira."""
    command = [sys.executable, "-c", CHAT, str(export), question]
    done = subprocess.run(command, cwd=export, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_default_run(tmp_path):
    """Catches a default that does not learn its training answers, or an export that answers otherwise than the run."""
    printed = run("trainer.enable_progress_bar=false", cwd=tmp_path)
    folder = run_folder(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["exact_match/train"] >= 0.8
    assert "held-out paraphrases" in printed and 0 <= metrics["exact_match/val"] <= 1
    assert metrics["emissions/energy_kwh"] > 0 and metrics["perf/tokens_per_second"] > 0
    assert metrics["steps"] == metrics["epochs"] * -(-_rows() // 16)
    answer = chat(folder / "export", "What is the capital of France?")
    assert "Paris" in answer and answer in printed
    names = {path.name for path in folder.iterdir()}
    assert {".hydra", "checkpoints", "export", "logs", "metrics.json", "environment.json"} <= names
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}


def _rows():
    from aira.files import locate

    with open(locate("pkg://aira.data/sample/instruction-en/train.jsonl"), encoding="utf-8") as file:
        return sum(1 for _ in file)


def test_lora_from_an_export(tmp_path):
    """Catches adapters that are not merged on export, train nothing, or train the frozen weights."""
    run(*SMALL, "trainer.max_steps=2", cwd=tmp_path / _made(tmp_path, "first"))
    export = run_folder(tmp_path / "first") / "export"
    second = tmp_path / _made(tmp_path, "second")
    printed = run(*SMALL, f"model.path={export}", "model.lora.r=4", "trainer.max_steps=4", cwd=second)
    assert "0.0 M trained" in printed
    from safetensors.torch import load_file

    before, after = load_file(export / "model.safetensors"), load_file(run_folder(second) / "export/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("attn" in name or "mlp" in name for name in changed)


def _made(parent, name):
    (parent / name).mkdir()
    return name


def test_loggers(tmp_path):
    """Catches a W&B run that asks for a login or writes nothing, and a csv log without the curves."""
    arguments = [*SMALL, "trainer.max_steps=4", "logger=[wandb,tensorboard]", "trainer.log_every_n_steps=1"]
    run(*arguments, "callbacks.samples.every_n_steps=2", cwd=tmp_path)
    folder = run_folder(tmp_path)
    assert list(folder.glob("tensorboard/events.out.tfevents.*"))
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = records(file)
    config = {item.key: json.loads(item.value_json) for one in found for item in one.run.config.update}
    assert config["optimizer"]["max_grad_norm"] == 1.0 and config["environment"]["cpu_count"]
    points = [{"/".join(i.nested_key) or i.key: i.value_json for i in one.history.item} for one in found]
    losses = [json.loads(point["train/loss"]) for point in points if "train/loss" in point]
    assert len(losses) == 4 and losses[-1] < losses[0] and any("val/loss" in point for point in points)
    made = artifacts(file)
    name = f"{folder.parent.name}-{folder.name}"
    files, used, _ = made["model"].pop(name)
    assert not used and {"model.safetensors", "config.json", "tokenizer.json"} <= files
    assert [used for _, used, _ in made["model"].values()] == [True]
    (data,) = made["dataset"]
    assert "instruction-en" in data and made["dataset"][data][1]
    assert any("samples" in table for table in made["run_table"])
    header = (folder / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/lr", "train/grad_norm", "val/loss", "step"} <= set(header)


def test_a_conversation_that_is_longer_than_the_context(tmp_path):
    """Catches a run that is lost at its end, since a prompt that was cut away in training cannot be answered."""
    said = [("user", "Hello?"), ("assistant", "Hello!"), ("user", "why " * 200), ("assistant", "So.")]
    talks = [[{"role": role, "content": text} for role, text in part] for part in (said, said[:2]) for _ in range(4)]
    lines = [json.dumps({"conversations": talk}) for talk in talks]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    small = [argument for argument in SMALL if "exact_match" not in argument]
    run(*small, f"data.path={tmp_path}/talks.jsonl", "data.max_length=64", "model.config.n_positions=64", cwd=tmp_path)
    assert (run_folder(tmp_path) / "export" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["model.path=nobody/nothing"], "model=smollm2-135m"),
        (["model.path=./missing"], "there is no such file or folder"),
        (["data.path=missing.jsonl"], "there is no such file"),
        (["data.max_length=5000"], "context is 1024"),
        (["data.max_length=4"], "No row of"),
        (["optimizer.lr=1e30", "trainer.max_steps=30", *SMALL], "The loss is"),
        (["model=gpt2-124m"], "model=smollm2-135m"),
        (["trainer=gpu"], "trainer=cpu runs everywhere"),
    ],
)
def test_errors_are_one_message(tmp_path, arguments, message):
    """Catches a traceback where the user could have been told what to do."""
    printed = run(*arguments, cwd=tmp_path, status=2)
    assert message in printed and "Traceback" not in printed
