"""SmolLM2 on real rows, through the commands that a user types. Long: minutes each."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aira.data.tokenize import encode_scorer
from aira.data.trees import Tree, pack
from aira.models.forward import scores
from aira.models.loading import load_model, load_tokenizer
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


PAIRS = ["data.max_examples=24", "data.batch_size=4", "trainer.max_steps=2", "trainer.limit_val_batches=2"]


def test_dpo_with_adapters(tmp_path, data_folder):
    """Catches a first loss that is not ln 2 for the real model with its own template and with adapters."""
    file = data_folder / "hh_rlhf_harmless_base_test.jsonl"
    adapters = ["method=dpo", "model.lora.r=4", "trainer.log_every_n_steps=1", f"data.path={file}"]
    run(*COMMON, *PAIRS, *adapters, cwd=tmp_path)
    log = (run_folder(tmp_path) / "logs/version_0/metrics.csv").read_text().splitlines()
    losses = [line.split(",")[log[0].split(",").index("train/loss")] for line in log[1:]]
    assert float(next(filter(None, losses))) == pytest.approx(0.6931472, abs=1e-6)
    assert len(chat(run_folder(tmp_path) / "export", "What is the capital of France?")) > 10


def test_reward_with_the_native_template(tmp_path, data_folder):
    """Catches a scorer whose pad token is the end token, as the model's own is, and so is read at the wrong place."""
    run(*COMMON, *PAIRS, "method=reward", f"data.path={data_folder / 'hh_rlhf_harmless_base_test.jsonl'}", cwd=tmp_path)
    export = run_folder(tmp_path) / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    asked = {"role": "user", "content": "What is 2 + 3?"}
    talks = [[asked, {"role": "assistant", "content": said}] for said in ("5.", "Find it out yourself, will you?")]
    with torch.no_grad():
        batch = tokenizer.apply_chat_template(talks, padding=True, return_dict=True, return_tensors="pt")
        together = model(**batch).logits[:, 0]
        alone = [
            model(**tokenizer.apply_chat_template([talk], return_dict=True, return_tensors="pt")).logits[0, 0]
            for talk in talks
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)
    trees = [encode_scorer(tokenizer, [talk], 200, padded=False) for talk in talks]
    ours_tokenizer, added = load_tokenizer(str(export), head="score", template="native")
    ours = load_model(str(export), ours_tokenizer, added, head="score", label="reward").eval()
    with torch.no_grad():
        packed = scores(ours, pack([Tree(tree["branches"], tree["scored"]) for tree in trees]))
    assert not added
    torch.testing.assert_close(packed, together, atol=1e-5, rtol=1e-5)
