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
    readme = folder / "README.md"
    readme.write_text(card, encoding="utf-8")
    for file in folder.glob("*.safetensors"):  # safetensors writes for the owner alone
        file.chmod(readme.stat().st_mode)


_LOAD = """\
from transformers import AutoModelFor{auto}, AutoTokenizer

folder = "."  # this folder
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelFor{auto}.from_pretrained(folder)
"""
_CHAT = (
    _LOAD.format(auto="CausalLM")
    + """\
asked = [{"role": "user", "content": "QUESTION"}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
)
_SCORER = "from torch import no_grad\n" + _LOAD.format(auto="SequenceClassification")
_PAIRS = """\
prompts = ["QUESTION", "QUESTION"]
responses = ["GOOD", "BAD"]
"""
_TALKS = (
    _SCORER
    + _PAIRS
    + """\
talks = [
    [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    for prompt, response in zip(prompts, responses)
]
batch = tokenizer.apply_chat_template(talks, padding=True, return_dict=True, return_tensors="pt")
with no_grad():
    print(model(**batch).logits[:, 0].tolist())  # the higher, the better"""
)
_SEGMENTS = (
    _SCORER
    + _PAIRS
    + """\
# prompts of several turns are "user: …" and "assistant: …", with a blank line between
batch = tokenizer(prompts, responses, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
with no_grad():
    print(model(**batch).logits[:, 0].tolist())  # the higher, the better"""
)
_TEXTS = (
    _SCORER
    + """\
texts = ["GOOD", "BAD"]
batch = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
with no_grad():
    scores = model(**batch).logits[:, 0]
print(scores.tolist())  # sigmoid(score) is the probability that a text is harmless
print((scores < model.config.threshold).tolist())  # whether it is taken to be toxic"""
)
_SAID = {  # a good and a bad response, then a harmless and a toxic text
    "en": (
        ("Let me think about it with you.", "Find it out yourself, and leave me in peace."),
        ("Thank you for the lovely evening.", "Shut your mouth, you fool."),
    ),
    "pt": (
        ("Vamos pensar nisso juntos.", "Descubra sozinho e me deixe em paz."),
        ("Obrigado pela noite agradável.", "Cale a boca, seu idiota."),
    ),
}
_CHAT_LIMITS = """\
A language model states falsehoods fluently, repeats the biases of its training text, and may loop or digress."""
_SCORER_LIMITS = """\
A scorer learns what its training pairs or labels have in common, which may be length, style or a topic rather than what
is meant; it repeats its annotators' biases, and outside of its training data its scores mean little."""


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
        "pipeline_tag": "text-classification" if method["head"] == "score" else "text-generation",
        "tags": ["aira", method["name"]],
    }
    yaml = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(metrics.items()))
    encoder = model["role"] == "encoder"
    use, limits = _CHAT, _CHAT_LIMITS
    if method["head"] == "score":
        pairs = _SEGMENTS if encoder else _TALKS
        use, limits = (_TEXTS if method["label"] == "harmless" else pairs), _SCORER_LIMITS
    good, bad = _SAID[language["code"]][use == _TEXTS]
    said = {"QUESTION": language["questions"][0], "GOOD": good, "BAD": bad, "LENGTH": str(values["data"]["max_length"])}
    for word, text in said.items():
        use = use.replace(word, text)
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

## Use

```python
{use}
```

## Limitations

{limits} This one is meant for research.

## Configuration

```json
{json.dumps(settings, indent=2, ensure_ascii=False)}
```

## Environment

```json
{json.dumps(environment, indent=2)}
```
"""
