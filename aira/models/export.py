"""The result of a run as a plain Hugging Face folder: no Aira is needed to load it."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging


def export(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str, max_new_tokens: int = 200) -> None:
    """Write weights (safetensors, adapters merged), configuration, tokenizer, generation settings and model card.

    Args:
        model: a Transformers model, or a `peft.PeftModel` around one, whose adapters are merged for good.
        folder: created where missing.
        card: the text of README.md.
        max_new_tokens: what `generate` stops at where its caller says nothing.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    folder.mkdir(parents=True, exist_ok=True)
    if model.can_generate():
        model.generation_config.max_new_tokens = max_new_tokens
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if was_on:
        transformers_logging.enable_progress_bar()
    (folder / "README.md").write_text(card, encoding="utf-8")


def model_card(values: dict[str, Any], metrics: dict[str, float], environment: dict[str, Any]) -> str:
    """The text of an export's README.md, in the hub's format.

    Args:
        values: the resolved configuration of the run.
        metrics: final figures by name.
        environment: what the run ran on.
    """
    model, method, language = values["model"], values["method"], values["language"]
    header = {
        "language": language["code"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["aira", method["name"]],
    }
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()))
    settings = {key: values[key] for key in ("model", "method", "data", "optimizer", "schedule", "trainer", "seed")}
    return f"""---
{yaml}
---
# {model["name"]}, {method["name"]}, {language["code"]}

Trained with Aira from `{model["path"]}` on `{values["data"]["path"]}`.

## Figures

| metric | value |
|---|---|
{rows}

## Limitations

A language model states falsehoods fluently, repeats the biases of the text it was trained on, and may loop or digress.
This one is meant for research.

## Configuration

```json
{json.dumps(settings, indent=2, ensure_ascii=False)}
```

## Environment

```json
{json.dumps(environment, indent=2)}
```
"""
