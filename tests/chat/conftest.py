"""Random exports of each purpose, with weights large enough that answers and scores differ."""

import pytest
import torch
from transformers import set_seed

from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 256}
CARD = "---\nlanguage: en\n---\n"


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """An output folder with a run of each purpose."""
    folder = tmp_path_factory.mktemp("outputs") / "day"
    for name, head, label in (("chat", "lm", None), ("reward", "score", "reward"), ("toxicity", "score", "harmless")):
        set_seed(len(name))
        tokenizer, added = load_tokenizer(TINY, head=head)
        model = load_model(TINY, tokenizer, added, head=head, label=label, config=SHAPE)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)
        if label == "harmless":
            model.config.threshold = 0.25
        export(model, tokenizer, folder / name / "export", CARD)
    return folder
