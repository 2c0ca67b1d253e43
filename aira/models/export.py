"""The result of a run as a plain Hugging Face folder: no Aira is needed to load it."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from aira.files import LOCAL, as_json, markdown, without_home
from aira.models.families import FAMILIES, UNLIMITED, Family, context_length
from aira.models.lora import merge_lora


def export(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
    max_new_tokens: int = 200,
    max_length: int | None = None,
) -> None:
    """Write weights (safetensors, adapters merged), configuration, tokenizer, generation settings and model card.

    The folder is there as a whole or not at all; one that was there before is replaced.

    Args:
        model: a Transformers model, or a `peft.PeftModel` around one, whose adapters are merged for good.
        card: the text of README.md.
        max_new_tokens: what `generate` stops at where its caller says nothing.
        max_length: tokens that `truncation=True` cuts to; None for the model's context.
    """
    if hasattr(model, "merge_and_unload"):
        model = merge_lora(model)
    if model.can_generate():
        model.generation_config.max_new_tokens = max_new_tokens
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        _for_others(part, min(context_length(model.config), max_length or UNLIMITED), tokenizer.model_input_names)
        readme = part / "README.md"
        readme.write_text(card, encoding="utf-8")
        for file in part.glob("*.safetensors"):  # safetensors writes for the owner alone
            file.chmod(readme.stat().st_mode)
        for file in [*part.iterdir(), part]:
            _sync(file)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(file: Path) -> None:
    """Have a file, or a folder's list of names, on the disk: a power cut could leave a new name on no bytes."""
    opened = os.open(file, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _for_others(folder: Path, max_length: int, inputs: list[str]) -> None:
    """Say what Transformers 4 and llama.cpp look for by other names than Transformers 5 writes."""
    there = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config: dict[str, Any] = {"torch_dtype": there["dtype"]}
    for theirs, ours in FAMILIES.get(there["model_type"], Family("causal")).other_names:
        config[theirs] = there[ours]
    rope = there.get("rope_parameters")
    if rope and "full_attention" in rope:  # with other angles in layers that have a window, as Gemma 3
        config |= {"rope_theta": rope["full_attention"]["rope_theta"]}
        if "sliding_attention" in rope:
            config |= {"rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
    elif rope and "rope_theta" in rope:
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        config |= {"rope_theta": rope["rope_theta"]}
        config |= {"rope_scaling": None if scaling.get("rope_type", "default") == "default" else scaling}
    tokenizer: dict[str, Any] = {"model_input_names": inputs}  # by default version 4 has segments for every model
    tokens = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if tokens["tokenizer_class"] == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"  # the same by the name that both versions know
    if max_length < UNLIMITED:
        tokenizer["model_max_length"] = max_length
    for name, before, more in (("config.json", there, config), ("tokenizer_config.json", tokens, tokenizer)):
        text = json.dumps(before | more, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


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
_PIPELINE = {
    "harmless": """
In `pipeline("text-classification")` the only label is `harmless`, whatever the text, and its score is the probability
of that: a text is taken to be toxic where the score is below the sigmoid of `threshold` in config.json.
""",
    "reward": """
In `pipeline("text-classification")` the only label is `reward`, and its score is the reward, which is no probability.
""",
}
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


def model_card(
    values: dict[str, Any],
    metrics: dict[str, float],
    environment: dict[str, Any],
    evaluations: Sequence[dict[str, Any]] = (),
) -> str:
    """The text of an export's README.md, in the hub's format.

    Args:
        values: the resolved configuration of the run.
        metrics: final figures by name.
        environment: what the run ran on.
        evaluations: rows of the run's evaluations.jsonl, see `aira.evaluation.results.remember`.
    """
    model, method, language = values["model"], values["method"], values["language"]
    name = f"{model['name']}-{method['name']}-{language['code']}"
    header = ModelCardData(
        model_name=name,
        language=language["code"],
        library_name="transformers",
        pipeline_tag="text-classification" if method["head"] == "score" else "text-generation",
        base_model=_hub_id(model["path"]),
        datasets=_hub_id(values["data"]["path"]),
        tags=["aira", method["name"]],
        eval_results=[
            EvalResult(
                task_type="text-classification" if method["head"] == "score" else "text-generation",
                dataset_name=row["task"],
                dataset_type=row["task"],
                metric_type=row.get("metric") or "accuracy",
                metric_value=round(100 * row["value"] if row.get("percent") else row["value"], 2),
            )
            for row in evaluations
            if row["candidate"] and (row.get("metric") or row.get("percent"))
        ],
        co2_eq_emissions={
            "emissions": round(1000 * metrics["emissions/co2_kg"], 6),  # in grams, as the hub has it
            "source": "CodeCarbon",
            "training_type": "pre-training" if model["path"].startswith("pkg://aira.models") else "fine-tuning",
        }
        if "emissions/co2_kg" in metrics
        else None,
    )
    rows = "\n".join(f"| {markdown(name)} | {value:.6g} |" for name, value in sorted(metrics.items()))
    encoder = model["architecture"] == "encoder"
    use, limits, purpose = _CHAT, _CHAT_LIMITS, "to answer in a chat"
    if method["head"] == "score":
        texts = method["label"] == "harmless"
        use, limits = _TEXTS if texts else _SEGMENTS if encoder else _TALKS, _SCORER_LIMITS
        purpose = "to tell harmless texts from toxic ones" if texts else "to tell the better of two answers to a prompt"
    good, bad = _SAID[language["code"]][use == _TEXTS]
    said = {"QUESTION": language["questions"][0], "GOOD": good, "BAD": bad, "LENGTH": str(values["data"]["max_length"])}
    use = re.sub("|".join(said), lambda word: json.dumps(said[word[0]], ensure_ascii=False)[1:-1], use)  # within quotes
    pipeline = _PIPELINE.get(method["label"], "")
    start, data = (_code(_public(values[group]["path"], "path")) for group in ("model", "data"))
    settings = {
        key: _public(values[key], key)
        for key in ("model", "method", "data", "optimizer", "schedule", "trainer", "seed")
    }
    evaluated = "\n".join(
        f"| {' | '.join(markdown(row.get(key, '')) for key in ('name', 'task', 'metric', 'shown'))} |"
        for row in evaluations
    )
    evaluation = f"""
## Evaluation

Fractions such as accuracies are in percent, with a 95 % interval in brackets or a standard error; simple rules stand
beside a scorer.

| model | task | metric | figure |
|---|---|---|---|
{evaluated}
"""
    text = f"""---
{header.to_yaml()}
---
# {markdown(name)}

Trained with Aira ({markdown(method["name"])}) from {start} on {data}.

## Use

It is meant {purpose}, for research.

```python
{use}
```
{pipeline}
## Limitations

{limits}
{evaluation if evaluations else ""}
## Figures of the training

| metric | value |
|---|---|
{rows}

## Configuration

```json
{as_json(settings, indent=2, ensure_ascii=False)}
```

## Environment

```json
{as_json(_public(environment), indent=2)}
```
"""
    return without_home(text)


def _code(text: str) -> str:
    """A text as Markdown shows it letter for letter as code, on one line."""
    line, longest = " ".join(text.split()), max(map(len, re.findall("`+", text)), default=0)
    return f"{'`' * (longest + 1)} {line} {'`' * (longest + 1)}" if longest else f"`{line}`"


PATHS = ("path", "checkpoints", "exclude", "reference", "cache_dir", "default_root_dir")
"""Keys whose values, at any depth, are paths or hub ids."""


def _public(value: Any, key: str = "") -> Any:
    """A setting as it can be published: of a local path only what it ends in, since folders name users and machines."""
    if isinstance(value, dict):
        return {name: _public(one, key if key in PATHS else name) for name, one in value.items()}
    if isinstance(value, list):
        return [_public(one, key) for one in value]
    named = key in PATHS and isinstance(value, str) and not value.startswith("pkg://") and not _hub_id(value)
    if not isinstance(value, str) or not (named or value.startswith(("/", "~", "./", "../", "file:"))):
        return value
    path = PurePath(value)
    return path.parent.name if path.name == "export" else path.name


def _hub_id(path: str) -> str | None:
    """A path, where it is an id on the hub."""
    local = path.endswith(LOCAL) or Path(path).exists()
    return path if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) and not local else None
