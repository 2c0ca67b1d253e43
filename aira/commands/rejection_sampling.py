"""`aira rejection_sampling output=<folder>`: training data from a model's own best and worst answers.

n answers are sampled to each prompt and scored by a reward model. `best/train.parquet` has the best ones (instruction
data), `pairs/train.parquet` the best and the worst (preference data), for data.path=<folder>/best or /pairs. What is
sampled is kept part by part, so the same command goes on after a stop, and torchrun's processes share the parts.
"""

import hashlib
import json
import math
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from aira.commands.shell import command
from aira.config.compose import compose_config
from aira.config.record import plain
from aira.data.schemas import BadRow, text
from aira.data.sources import read
from aira.errors import AiraError
from aira.files import as_json, read_json, without_home, write_whole

FREE = ("output", "output_dir", "cache_dir", "device", "tokens_per_row", "debug", "min_margin")
"""Keys on which the answers do not depend, but for the type of the device that `auto` stands for."""

NAMES = ("chat_model", "reward_model", "toxicity_model", "prompts", "split", "column", "max_prompts", "models")
"""Keys by which models and prompts are found; the answers depend on what they are, which is told beside."""


@command("rejection_sampling")
def main() -> None:
    """Compose conf/rejection_sampling.yaml with the command line, sample, and write what it is worth."""
    values = plain(compose_config("rejection_sampling", sys.argv[1:]))
    if values["reward_model"] == "none":
        raise AiraError("reward_model=none: answers are chosen by their reward. Name a reward model, or last.")
    prompts = _prompts(values)
    from aira.chat.load import load  # torch is imported only once the configuration is known to be right

    sample(load(values), prompts, values)


def _prompts(values: dict[str, Any]) -> list[str]:
    """The different prompts, in their order."""
    source = read(values["prompts"], cache_dir=values["cache_dir"], key="prompts")
    rows = source.split(values["split"], "split")
    if values["column"] not in rows.column_names:
        raise AiraError(
            f"column={values['column']}: {values['prompts']} has the columns {', '.join(rows.column_names)}."
        )
    found: dict[str, None] = {}
    dropped = Counter[str]()
    for row in rows.select_columns(values["column"]):
        try:
            found[text(row, values["column"])] = None
        except BadRow as problem:
            dropped[str(problem).partition(" (")[0]] += 1
    if int(os.environ.get(*WORLD[0])) == 0:
        for line in (*source.said, *(f"{values['prompts']}: dropped {dropped[why]} rows: {why}." for why in dropped)):
            print(line)
    if not found:
        raise AiraError(f"{values['prompts']}: no text stands in the column {values['column']}.")
    return list(found)[: values["max_prompts"]]


def sample(chat: Any, prompts: list[str], values: dict[str, Any]) -> None:
    """Answer and score the prompts part by part, and write the tables once all parts are there.

    Args:
        chat: an `aira.chat.pipeline.Chat` with a reward model.
        prompts: what is asked; one that is longer than the model's context is left out, and told.
        values: of conf/rejection_sampling.yaml.

    Raises:
        AiraError: the folder holds the parts of another sampling.
    """
    from aira.inference.generation import fits

    output, rank, processes = Path(values["output"]), *(int(os.environ.get(k, d)) for k, d in WORLD)
    asked = [text for text in prompts if fits(chat.model, chat.tokenizer, text)]
    if len(asked) < len(prompts) and rank == 0:
        print(f"{len(prompts) - len(asked)} of {len(prompts)} prompts are longer than the model's context.")
    _same_settings(output, settings_of(chat, asked, values))
    size = values["prompts_per_part"]
    parts = [output / "parts" / f"{start // size:06}.jsonl" for start in range(0, len(asked), size)]
    for i in tqdm(range(rank, len(parts), processes), desc="Parts", disable=rank > 0):
        if parts[i].exists():
            continue
        some = asked[i * size : (i + 1) * size]
        found = chat.candidates([[{"role": "user", "content": text}] for text in some], seed=values["seed"] + i)
        for several in found:
            chat.choose(several)
        rows = [{"prompt": text, "candidates": [asdict(c) for c in several]} for text, several in zip(some, found)]
        write_whole(parts[i], "".join(as_json(row, ensure_ascii=False) + "\n" for row in rows))
    if all(part.exists() for part in parts):  # whoever is last; two at once would write the same
        rows = [row for part in parts for row in _read(part)]
        _tables(rows, output, values["min_margin"])


WORLD = (("RANK", "0"), ("WORLD_SIZE", "1"))
"""What torchrun says of a process, and what holds without it."""


def settings_of(chat: Any, asked: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """All that the answers depend on, with the names (`NAMES`) that say where it is from; as settings.json has it."""
    from aira.data.tokenize import tokenizer_content
    from aira.environment import versions
    from aira.models.backbone import content

    models = [one for one in (chat, chat.reward, chat.guard) if one]
    settings = {key: value for key, value in values.items() if key not in FREE} | {
        "device": chat.model.device.type,
        "versions": versions("torch", "transformers", "tokenizers", "jinja2"),
        "prompts_asked": len(asked),
        "prompts_hash": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "weights": [content(one.model) for one in models],
        "tokenizers": [tokenizer_content(one.tokenizer) for one in models],
        "models": chat.paths,
    }
    found: dict[str, Any] = json.loads(without_home(json.dumps(settings)))
    return found


OWN = ("settings.json", "stage.json", "parts", "best", "pairs")
"""What stands in the folder of a sampling."""


def _same_settings(output: Path, settings: dict[str, Any]) -> None:
    file = output / "settings.json"
    if output.exists() and not output.is_dir():
        raise AiraError(f"output={output} is a file. Name a folder.")
    there = read_json(file)
    if there is None and output.exists() and any(output.iterdir()):
        others = [one.name for one in output.iterdir() if one.name not in OWN and not one.name.startswith(".")]
        if others or (output / "parts").exists():
            raise AiraError(
                f"output={output} holds {', '.join(sorted(others)[:3]) or 'parts'}, and no settings.json of a sampling "
                "that could be read. Name another folder."
            )
    if there is not None:
        differing = [key for key, value in settings.items() if there.get(key) != value]
        if set(differing) - set(NAMES):
            told = "; ".join(f"{key}={there.get(key)} there, {settings[key]} here" for key in differing)
            raise AiraError(f"output={output} holds answers of another sampling ({told}). Name another folder.")
    else:
        write_whole(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _read(part: Path) -> list[dict[str, Any]]:
    """The rows of a part.

    Raises:
        AiraError: a reward in it is no number.
    """
    rows = [json.loads(line) for line in part.read_text(encoding="utf-8").split("\n")[:-1]]
    for number, row in enumerate(rows, start=1):
        if not all(one["reward"] is not None and math.isfinite(one["reward"]) for one in row["candidates"]):
            raise AiraError(f"{part}, row {number}: a reward is no number. Delete the file: the same command makes it.")
    return rows


def _tables(rows: list[dict[str, Any]], output: Path, min_margin: float) -> None:
    """The best answers, and pairs of the best and the worst, with their scores."""
    best, pairs = [], []
    for row in rows:
        told = [one for one in row["candidates"] if one["text"]]
        chosen = next((one for one in told if one["fate"] == "chosen"), None)
        if chosen is None:
            continue
        scores = {"reward": chosen["reward"], "harmless": chosen["harmless"]}
        best.append({"prompt": row["prompt"], "completion": chosen["text"], **scores})
        worst = min(told, key=lambda one: one["reward"])
        if chosen["reward"] - worst["reward"] > min_margin:
            pair = {"prompt": row["prompt"], "chosen": chosen["text"], "rejected": worst["text"]}
            pairs.append({**pair, "chosen_reward": chosen["reward"], "rejected_reward": worst["reward"]})
    provenance = {b"aira": (output / "settings.json").read_bytes()}
    for name, table in (("best", best), ("pairs", pairs)):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(table).replace_schema_metadata(provenance), sink)
        write_whole(output / name / "train.parquet", sink.getvalue().to_pybytes())
    answers = [one["reward"] for row in rows for one in row["candidates"]]
    mean = sum(answers) / len(answers)
    mean_best = sum(row["reward"] for row in best) / max(1, len(best))
    print(
        f"{len(rows)} prompts, {len(answers)} answers of mean reward {mean:.3f}; {len(best)} best ones of mean "
        f"{mean_best:.3f} in {output / 'best'}; {len(pairs)} pairs in {output / 'pairs'}\n"
        f"Next: aira train method=dpo data.path={output / 'pairs'} model.path=<the chat model>"
    )


if __name__ == "__main__":
    main()
