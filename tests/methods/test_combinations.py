"""Each method in each way gives the losses and gradient norms of one process with one row, however it is shared out."""

import json
import subprocess
import sys

import pytest

from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer
from tests.methods.combinations import COMBINATIONS, TINY, make_data
from tests.methods.memory import SHAPE

ONE_ROW, ROWS = "100000", "64"


def launched(module, *arguments, processes=2):
    """Run a script of this folder, by torchrun where it takes several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", f"tests.methods.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["one", "ddp", "fsdp"])
def test_rows_and_processes_make_no_difference(tmp_path, strategy):
    """Catches gradients that are reduced before they are whole, averages of averages, and rows that count twice."""
    make_data(tmp_path)
    found = {}
    for name, budget in (("one", ONE_ROW), (strategy, ROWS)):
        file = tmp_path / f"{name}-{budget}.json"
        launched("combinations", name, budget, tmp_path, file, *COMBINATIONS, processes=1 if name == "one" else 2)
        found[budget] = json.loads(file.read_text())
    wrong = []
    for name in COMBINATIONS:
        expected, got = found[ONE_ROW][name], found[ROWS][name]
        tolerance = 1e-5 if name.endswith("32-true") else 0.01
        for metric in ("loss", "grad_norm"):
            if got[metric] != pytest.approx(expected[metric], rel=tolerance, abs=tolerance if metric == "loss" else 0):
                wrong.append(f"{name}: {metric} {got[metric]}, with one row {expected[metric]}")
        assert expected["rows"] == [[1, 1, 1]] and min(map(min, got["rows"])) >= 3
        assert strategy == "one" or got["rows"][0] != got["rows"][1]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_no_process_holds_a_whole_reference(tmp_path, elsewhere):
    """Catches a reference that is computed before weights are sharded, and a copy of the whole model that is kept."""
    make_data(tmp_path)
    reference = []
    if elsewhere:
        tokenizer, added = load_tokenizer(TINY)
        export(load_model(TINY, tokenizer, added, config=SHAPE), tokenizer, tmp_path / "reference", "card")
        reference = [tmp_path / "reference"]
    launched("memory", tmp_path, tmp_path / "found.json", *reference)
    found = json.loads((tmp_path / "found.json").read_text())
    shards = (1 + elsewhere) * found["whole"] / 2
    embeddings = found["whole"] - SHAPE["n_layer"] * found["layer"]  # with the last norm: one unit that stays gathered
    limit = shards + embeddings + 3 * found["layer"]  # a layer as it is sent and as it is used; activations and data
    assert found["whole"] / 2 < min(found["held"]) <= max(found["held"]) < limit < (1 + elsewhere) * found["whole"]
