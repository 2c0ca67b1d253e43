"""SmolLM2 on real rows, through the commands that a user types. Long: minutes each."""

import json

import pytest

from tests.end_to_end.command import run, run_folder
from tests.end_to_end.test_train import chat

pytestmark = pytest.mark.slow

ENGLISH = "data.columns={prompt: [instruction, input], completion: output}"
PORTUGUESE = "data.columns={prompt: question_pt_origin, completion: answer_pt_origin}"
COMMON = ["model=smollm2-135m", "trainer.enable_progress_bar=false", "data.max_length=128", "data.batch_size=8"]


@pytest.mark.parametrize(
    "language, file, columns, question",
    [
        ("en", "alpaca_en_demo.jsonl", ENGLISH, "What is the capital of France?"),
        ("pt", "pira_validation.csv", PORTUGUESE, "Qual é a capital da França?"),
    ],
)
def test_fine_tuning_helps_on_held_out_rows(tmp_path, data_folder, language, file, columns, question):
    """Catches training that does not lower the validation loss, and an export of GGUF weights that nobody can load."""
    arguments = [*COMMON, f"language={language}", f"data.path={data_folder / file}", columns, "data.max_examples=100"]
    losses = ["trainer.val_check_interval=5", "trainer.max_steps=10", "optimizer.lr=1e-4", "schedule.warmup=0"]
    run(*arguments, *losses, "trainer.log_every_n_steps=1", cwd=tmp_path)
    folder = run_folder(tmp_path)
    log = (folder / "logs/version_0/metrics.csv").read_text().splitlines()
    column = log[0].split(",").index("val/loss")
    validation = [float(line.split(",")[column]) for line in log[1:] if line.split(",")[column]]
    assert validation[-1] < validation[0]
    config = json.loads((folder / "export/config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert len(chat(folder / "export", question)) > 10
