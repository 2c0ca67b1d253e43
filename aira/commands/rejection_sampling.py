"""`aira rejection_sampling output=<folder>`: training data from a model's own best and worst answers.

n answers are sampled to each prompt and scored by a reward model. `best/train.parquet` has the best ones (instruction
data), `pairs/train.parquet` the best and the worst (preference data), for data.path=<folder>/best or /pairs. What is
sampled is kept part by part, so the same command goes on after a stop, and torchrun's processes share the parts.
"""

import contextlib
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
from aira.config.compose import compose_settings
from aira.config.schema import RejectionSampling
from aira.data.schemas import BadRow, text
from aira.data.sources import read
from aira.errors import AiraError, reason_of
from aira.files import as_json, check_writable, locked, read_json, typed, without_home, write_whole
from aira.folders import LOCK

FREE = ("output", "output_dir", "cache_dir", "device", "tokens_per_row", "debug", "min_margin")
"""Keys on which the answers do not depend, but for the type of the device that `auto` stands for."""

NAMES = ("chat_model", "reward_model", "toxicity_model", "prompts", "split", "column", "max_prompts", "models")
"""Keys by which models and prompts are found; the answers depend on what they are, which is told beside."""


@command("rejection_sampling")
def main() -> None:
    """Compose conf/rejection_sampling.yaml with the command line, sample, and write what it is worth."""
    values = compose_settings(RejectionSampling, sys.argv[1:])
    if values.reward_model == "none":
        raise AiraError("reward_model=none: answers are chosen by their reward. Name a reward model, or last.")
    prompts = _prompts(values)
    from aira.chat.load import load  # torch is imported only once the configuration is known to be right

    sample(load(values), prompts, values)


def _prompts(values: RejectionSampling) -> list[str]:
    """The different prompts, in their order."""
    source = read(values.prompts, cache_dir=values.cache_dir, key="prompts")
    rows = source.split(values.split, "split")
    if values.column not in rows.column_names:
        raise AiraError(f"column={values.column}: {values.prompts} has the columns {', '.join(rows.column_names)}.")
    found: dict[str, None] = {}
    dropped = Counter[str]()
    for row in rows.select_columns(values.column):
        try:
            found[text(row, values.column)] = None
        except BadRow as problem:
            dropped[problem.reason] += 1
    if int(os.environ.get(*WORLD[0])) == 0:
        for line in (*source.notices, *(f"{values.prompts}: dropped {dropped[why]} rows: {why}." for why in dropped)):
            print(line)
    if not found:
        raise AiraError(f"{values.prompts}: no text stands in the column {values.column}.")
    return list(found)[: values.max_prompts]


def sample(chat: Any, prompts: list[str], values: RejectionSampling) -> None:
    """Answer and score the prompts part by part, and write the tables once all parts are there.

    Args:
        chat: an `aira.chat.pipeline.Chat` with a reward model.
        prompts: what is asked; one that is longer than the model's context is left out, and told.
        values: of conf/rejection_sampling.yaml.

    Raises:
        AiraError: the folder holds the parts of another sampling, or another process writes there; or the model has no
            room for any prompt.
    """
    from aira.inference.generation import fits

    output, rank, processes = Path(values.output), *(int(os.environ.get(k, d)) for k, d in WORLD)
    asked = [text for text in prompts if fits(chat.model, chat.tokenizer, text)]
    if len(asked) < len(prompts) and rank == 0:
        print(f"{len(prompts) - len(asked)} of {len(prompts)} prompts are longer than the model's context.")
    if not asked:
        raise AiraError(f"{values.prompts}: the model's context has no room for any of the prompts.")
    settings = settings_of(chat, asked, values)
    _check_same(output, settings)  # before anything is written to what may be another's, and once more with the lock
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / LOCK, output) if rank == 0 else contextlib.nullcontext():
        _same_settings(output, settings)
        size = values.prompts_per_part
        portions = [asked[start : start + size] for start in range(0, len(asked), size)]
        parts = [output / "parts" / f"{i:06}.jsonl" for i in range(len(portions))]
        for i in tqdm(range(rank, len(parts), processes), desc="Parts", disable=rank > 0):
            if parts[i].exists():
                continue
            conversations = [[{"role": "user", "content": text}] for text in portions[i]]
            found = chat.candidates(conversations, seed=values.seed + i)
            for several in found:
                chat.choose(several)
            rows = [{"prompt": text, "candidates": list(map(asdict, one))} for text, one in zip(portions[i], found)]
            write_whole(parts[i], "".join(as_json(row, ensure_ascii=False) + "\n" for row in rows))
        if all(part.exists() for part in parts):  # whoever is last; two at once would write the same
            rows = [row for part, some in zip(parts, portions, strict=True) for row in _answers(part, some)]
            _tables(rows, output, values.min_margin, chat.paths["chat"])


WORLD = (("RANK", "0"), ("WORLD_SIZE", "1"))
"""What torchrun says of a process, and what holds without it."""


def settings_of(chat: Any, asked: list[str], values: RejectionSampling) -> dict[str, Any]:
    """All that the answers depend on, with the names (`NAMES`) that say where it is from; as settings.json has it."""
    from aira.environment import versions

    settings = {key: value for key, value in values.model_dump().items() if key not in FREE} | {
        "device": chat.model.device.type,
        "versions": versions("torch", "transformers", "tokenizers", "jinja2"),
        "prompts_asked": len(asked),
        "prompts_hash": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        **chat.made_of(),
        "models": chat.paths,
    }
    found: dict[str, Any] = json.loads(without_home(json.dumps(settings)))
    return found


def _same_settings(output: Path, settings: dict[str, Any]) -> None:
    """Write down what is sampled, where that is not there yet; see `_check_same`."""
    if not _check_same(output, settings):
        write_whole(output / "settings.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _check_same(output: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder holds parts of this very sampling.

    Raises:
        AiraError: it holds those of another, or something else, or is no folder.
    """
    check_writable("output", str(output))
    there = read_json(output / "settings.json")
    if there is None and output.exists():
        others = [one.name for one in output.iterdir() if one.name != "stage.json" and not one.name.startswith(".")]
        if others:
            raise AiraError(
                f"output={output} holds {', '.join(sorted(others)[:3])}, and no settings.json of a sampling that could "
                "be read. Name another folder."
            )
    if there is not None:
        differing = [key for key, value in settings.items() if there.get(key) != value]
        if set(differing) - set(NAMES):
            told = "; ".join(f"{key}={there.get(key)} there, {settings[key]} here" for key in differing)
            raise AiraError(f"output={output} holds answers of another sampling ({told}). Name another folder.")
    return there is not None


WAY_ON = "Delete the file: the same command makes it."


def _read(part: Path) -> list[dict[str, Any]]:
    """The rows of a part.

    Raises:
        AiraError: a reward in it is no number, or it is damaged.
    """
    try:
        rows = [json.loads(line) for line in part.read_text(encoding="utf-8").split("\n")[:-1]]
        rewards = [[one["reward"] for one in row["candidates"]] for row in rows]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise AiraError(f"{part} is damaged, or no part of a sampling: {reason_of(error)}. {WAY_ON}") from error
    for number, several in enumerate(rewards, start=1):
        if not all(isinstance(reward, (int, float)) and math.isfinite(reward) for reward in several):
            raise AiraError(f"{part}, row {number}: a reward is no number. {WAY_ON}")
    return rows


def _answers(part: Path, prompts: list[str]) -> list[dict[str, Any]]:
    """The rows of a part, which answer these prompts.

    Raises:
        AiraError: they do not, or see `_read`.
    """
    rows, keys = _read(part), {"text", "fate", "harmless", "reward"}
    if [row.get("prompt") for row in rows] != prompts:
        raise AiraError(f"{part} holds other prompts than those that are asked. {WAY_ON}")
    if not all(keys <= one.keys() for row in rows for one in row["candidates"]):
        raise AiraError(f"{part} is damaged, or no part of a sampling: an answer is not whole. {WAY_ON}")
    return rows


def _tables(rows: list[dict[str, Any]], output: Path, min_margin: float, model: str) -> None:
    """The best answers, and pairs of the best and the worst, with their scores; `model` has answered."""
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
        f"{mean_best:.3f} in {output / 'best'}; {len(pairs)} pairs in {output / 'pairs'}"
    )
    if pairs:
        print(f"Next: aira train method=dpo {typed('data.path', output / 'pairs')} {typed('model.path', model)}")


if __name__ == "__main__":
    main()
