"""The commands of the README and the docs are run, in their order, in one folder, on something tiny.

What needs the hub or a GPU has to end with one readable message here.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import DATA
from tests.end_to_end.command import ENVIRONMENT, ROOT, run_aira
from tests.end_to_end.test_extending import write_files
from tests.test_docs import NOT_RUN, RUN, commands

TINY = [
    "trainer.max_steps=2",
    "trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
    "data.max_examples=24",
    "callbacks.samples.exact_match=0",
    "callbacks.samples.max_new_tokens=4",
]
ADDED = {
    "train": TINY,
    "evaluate": ["eval.limit=2"],
    "rejection_sampling": ["n=2", "max_prompts=8", "max_new_tokens=8"],
    "chat": ["max_new_tokens=8"],
}
WANTS = {  # what a command names that is not here, and what it is answered
    "experiment=": "could not be loaded|cannot be set up",
    "pipeline=aira-2-124m --": "The stage sft failed",
    "model=gpt2-124m": "hub",
    "eval.tasks=[hellaswag": "hub",
    "trainer=gpu": "The trainer cannot be set up",
    "trainer=ddp ": "",
    "trainer=fsdp": "",
}
CHAT = "gpt2-tiny-sft-en"
ROLES = {"chat_model": CHAT, "reward_model": "reward", "toxicity_model": "toxicity"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user would stand, with files of the user's own, after `make train`."""
    cwd = tmp_path_factory.mktemp("documented")
    rows = [{"question": f"What is {i} and {i}?", "answer": str(2 * i), "title": "Sums"} for i in range(24)]
    (cwd / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [",".join(row[name] for name in ("title", "question", "answer")) for row in rows]
    (cwd / "mine.csv").write_text("\n".join(["title,question,answer", *lines]) + "\n")
    (cwd / "asked.jsonl").write_text(json.dumps({"prompt": "Who are you?"}) + "\n")
    extending = (ROOT / "docs/extending.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", extending, re.DOTALL)
    (cwd / "unlikelihood.py").write_text(code)
    write_files(extending, cwd)
    assert run_here("aira train", cwd)[0] == 0
    return cwd


def run_here(command, cwd):
    """Run a documented command on something tiny; its status, and what it printed."""
    command = re.sub(r"\$\(ls [^)]*-sft-[^)]*\)", "newest-sft", command.replace("$AIRA_DATA", str(DATA)))
    words = shlex.split(command, comments=True)
    name = RUN.search(command)[1]

    def newest(role=""):
        runs = [file.parent for file in cwd.glob(f"outputs/*/*{role}*/metrics.json")]
        return str(max(runs, key=lambda run: (run / "metrics.json").stat().st_mtime).relative_to(cwd))

    given = []
    for word in words:
        role = ROLES.get(word.split("=")[0], CHAT if "method=dpo" in words else "")
        word = re.sub(r"outputs/<date>/<run>|<run>", lambda _, role=role: newest(role), word)
        word = word.replace("newest-sft", newest(CHAT)) if "newest-sft" in word else word
        if "<evaluation>" in word:
            compared = next(cwd.glob("measured/**/results.json")).parent
            word = word.replace("<evaluation>/<model>", str(compared))
        given.append(re.sub(r"<[^>]*>", "somebody", word))
    if name == "evaluate":
        given = [f"model.path={newest(CHAT)}" if word == "model=smollm2-135m" else word for word in given]
        if "eval=reward" in given:
            given.append(f"model.path={newest('reward')}")
        elif not any(word.startswith(("model", "compare=", "--help")) for word in given):
            given.append(f"model.path={newest(CHAT)}")
    small = dict.fromkeys(("model=smollm2-135m", "model=gemma3-270m"), "model=llama-tiny") | {
        "model=minilm-l6": "model=bert-tiny"
    }
    given = [small.get(word, word) for word in given]
    given = ["sweep.trials=2" if word.startswith("sweep.trials=") else word for word in given]
    fixed = {"--help", "--cfg"} & set(given)
    given += [] if fixed or "compare=" in command else ADDED.get(name, [])
    if "outputs/scorer/run" in command and not (cwd / "outputs/scorer/run").exists():
        shutil.copytree(cwd / newest("reward"), cwd / "outputs/scorer/run")  # a benchmark would have made it
    if name == "pipeline":
        given += ["--"] * ("--" not in given) + TINY
    if name == "rejection_sampling":
        shutil.rmtree(cwd / "own", ignore_errors=True)
    if given[0] == "aira":
        return run_aira(*given[1:], cwd=cwd, typed="Who are you?\n/why\n/quit\n")
    if given[0] == "torchrun":
        given = ["python", "-m", "torch.distributed.run", *given[1:]]
    given = [str(ROOT / word) if word.endswith(".py") else word for word in given]
    environment = dict(ENVIRONMENT, PYTHONPATH=os.pathsep.join([str(cwd), str(ROOT)]))
    command = [sys.executable, *given[1:]]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def to_run():
    """The commands that run here; one that differs from an earlier one by the names of folders is not run again."""
    seen = set()
    for one in commands():
        (command,) = one.values
        shape = re.sub(r"\$\(ls [^)]*\)|outputs/<date>/<run>|<run>", "run", command)
        shape = re.sub(r" (hydra\.\w+\.dir|runs|model\.path)=\S+", "", shape)
        if shape not in seen and not any(word in command for word in NOT_RUN):
            seen.add(shape)
            yield one


@pytest.mark.slow
@pytest.mark.parametrize("command", to_run())
def test_a_documented_command_runs(command, folder):
    """Catches a documented command that fails, or that ends with a traceback where something is missing."""
    if "$AIRA_DATA" in command and not DATA.is_dir():
        pytest.skip("AIRA_DATA is not set and ../shared/data does not exist")
    if "compare=" in command:
        first = run_here("aira evaluate model.path=newest-sft eval=sample hydra.run.dir=measured", folder)
        assert first[0] == 0, first[1]
    status, printed = run_here(command, folder)
    wanted = next((text for word, text in WANTS.items() if word in f"{command} " and "--cfg" not in command), None)
    hub = "eval=aira-en" in command and "eval.data_dir" not in command
    if wanted is None and not hub:
        assert status == 0, printed
    else:
        assert status != 0 and "Error: " in printed, printed
        assert re.search(wanted or "", printed), printed
    assert "Traceback" not in printed, printed
