"""`aira rejection_sampling output=<folder>`: training data from a model's own best and worst answers.

n answers to each prompt are sampled and scored by a reward model. `best/train.parquet` has the best ones (instruction
data), `pairs/train.parquet` the best and the worst (preference data), for data.path=<folder>/best or /pairs. Answers
are written part by part, so the same command resumes after a stop, and torchrun's processes share the parts.
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

from tqdm import tqdm

from aira.commands.shell import command
from aira.config.compose import compose_settings
from aira.config.schema import RejectionSampling
from aira.errors import AiraError, reason_of
from aira.files import acquire_lock, as_json, check_writable, quoted_override, read_json, without_home, write_atomically
from aira.folders import LOCK

FREE = ("output", "output_dir", "cache_dir", "device", "tokens_per_row", "debug", "min_margin")
"""Keys on which the answers do not depend, except for the type of the device that `auto` resolves to."""

NAMES = ("chat_model", "reward_model", "toxicity_model", "prompts", "split", "column", "max_prompts", "models")
"""Keys by which models and prompts are found; the answers depend on their content, which is recorded separately."""


@command("rejection_sampling")
def main() -> None:
    """Compose conf/rejection_sampling.yaml with the command line, sample answers, and write the data sets."""
    settings = compose_settings(RejectionSampling, sys.argv[1:])
    if settings.reward_model == "none":
        raise AiraError("reward_model=none: answers are chosen by their reward. Name a reward model, or last.")
    prompts = _prompts(settings)
    from aira.chat.load import load  # torch is imported only after the configuration was checked

    sample(load(settings), prompts, settings)


def _prompts(settings: RejectionSampling) -> list[str]:
    """The distinct prompts, in order."""
    from aira.data.cells import text
    from aira.data.sources import read  # datasets is imported only once the configuration is known to be right
    from aira.data.texts import BadRow

    source = read(settings.prompts, cache_dir=settings.cache_dir, key="prompts")
    rows = source.split(settings.split, "split")
    if settings.column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise AiraError(f"column={settings.column}: {settings.prompts} has the columns {columns}.")
    prompts: dict[str, None] = {}
    dropped = Counter[str]()
    for row in rows.select_columns(settings.column):
        try:
            prompts[text(row, settings.column)] = None
        except BadRow as problem:
            dropped[problem.reason] += 1
    if int(os.environ.get(*WORLD[0])) == 0:
        for line in (*source.notices, *(f"{settings.prompts}: dropped {dropped[why]} rows: {why}." for why in dropped)):
            print(line)
    if not prompts:
        raise AiraError(f"{settings.prompts}: the column {settings.column} has no text.")
    return list(prompts)[: settings.max_prompts]


def sample(chat: Any, prompts: list[str], settings: RejectionSampling) -> None:
    """Answer and score the prompts part by part, and write the data sets once all parts exist.

    Args:
        chat: an `aira.chat.pipeline.Chat` with a reward model.
        prompts: those that are longer than the model's context are left out, and counted.
        settings: of conf/rejection_sampling.yaml.

    Raises:
        AiraError: the folder holds parts of another sampling, another process writes there, or no prompt fits into the
            model's context.
    """
    from aira.inference.generation import fits

    output, rank, processes = Path(settings.output), *(int(os.environ.get(k, d)) for k, d in WORLD)
    asked = [prompt for prompt in prompts if fits(chat.model, chat.tokenizer, prompt)]
    if len(asked) < len(prompts) and rank == 0:
        print(f"{len(prompts) - len(asked)} of {len(prompts)} prompts are longer than the model's context.")
    if not asked:
        raise AiraError(f"{settings.prompts}: the model's context has no room for any of the prompts.")
    record = sampling_record(chat, asked, settings)
    _check_same(output, record)  # before anything is written to a folder of somebody else's, and again with the lock
    output.mkdir(parents=True, exist_ok=True)
    with acquire_lock(output / LOCK, output) if rank == 0 else contextlib.nullcontext():
        _write_record(output, record)
        size = settings.prompts_per_part
        portions = [asked[start : start + size] for start in range(0, len(asked), size)]
        parts = [output / "parts" / f"{i:06}.jsonl" for i in range(len(portions))]
        for i in tqdm(range(rank, len(parts), processes), desc="Parts", disable=rank > 0):
            if parts[i].exists():
                continue
            conversations = [[{"role": "user", "content": text}] for text in portions[i]]
            answers = chat.candidates(conversations, seed=settings.seed + i)
            for candidates in answers:
                chat.choose(candidates)
            rows = [
                {"prompt": prompt, "candidates": list(map(asdict, candidates))}
                for prompt, candidates in zip(portions[i], answers)
            ]
            write_atomically(parts[i], "".join(as_json(row, ensure_ascii=False) + "\n" for row in rows))
        if all(part.exists() for part in parts):  # by the last process; two at once would write the same
            rows = [row for part, portion in zip(parts, portions, strict=True) for row in _read_answers(part, portion)]
            _write_tables(rows, output, settings.min_margin, chat.paths["chat"])


WORLD = (("RANK", "0"), ("WORLD_SIZE", "1"))
"""Variables that torchrun sets for a process, and their defaults without it."""


def sampling_record(chat: Any, asked: list[str], settings: RejectionSampling) -> dict[str, Any]:
    """All that the answers depend on, and the names (`NAMES`) of models and prompts; the content of settings.json."""
    from aira.environment import versions

    record = {key: value for key, value in settings.model_dump().items() if key not in FREE} | {
        "device": chat.model.device.type,
        "versions": versions("torch", "transformers", "tokenizers", "jinja2"),
        "prompts_asked": len(asked),
        "prompts_hash": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        **chat.made_of(),
        "models": chat.paths,
    }
    without_homes: dict[str, Any] = json.loads(without_home(json.dumps(record)))
    return without_homes


def _write_record(output: Path, record: dict[str, Any]) -> None:
    """Write settings.json if it does not exist; see `_check_same`."""
    if not _check_same(output, record):
        write_atomically(output / "settings.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _check_same(output: Path, record: dict[str, Any]) -> bool:
    """Whether the folder holds parts of this same sampling.

    Raises:
        AiraError: it holds parts of another sampling, or something else, or is no folder.
    """
    check_writable("output", str(output))
    before = read_json(output / "settings.json")
    if before is None and output.exists():
        others = [file.name for file in output.iterdir() if file.name != "stage.json" and file.name[0] != "."]
        if others:
            raise AiraError(
                f"output={output} holds {', '.join(sorted(others)[:3])}, and no settings.json of a sampling that could "
                "be read. Name another folder."
            )
    if before is not None:
        differing = [key for key, value in record.items() if before.get(key) != value]
        if set(differing) - set(NAMES):
            changes = "; ".join(f"{key}={before.get(key)} there, {record[key]} here" for key in differing)
            raise AiraError(f"output={output} holds answers of another sampling ({changes}). Name another folder.")
    return before is not None


DELETE_FILE = "Delete the file: the same command writes it again."


def _read(part: Path) -> list[dict[str, Any]]:
    """The rows of a part.

    Raises:
        AiraError: a reward in it is no number, or it is damaged.
    """
    try:
        rows = [json.loads(line) for line in part.read_text(encoding="utf-8").split("\n")[:-1]]
        rewards = [[candidate["reward"] for candidate in row["candidates"]] for row in rows]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise AiraError(f"{part} is damaged, or no part of a sampling: {reason_of(error)}. {DELETE_FILE}") from error
    for number, of_row in enumerate(rewards, start=1):
        if not all(isinstance(reward, (int, float)) and math.isfinite(reward) for reward in of_row):
            raise AiraError(f"{part}, row {number}: a reward is no number. {DELETE_FILE}")
    return rows


def _read_answers(part: Path, prompts: list[str]) -> list[dict[str, Any]]:
    """The rows of a part, checked to be answers to these prompts.

    Raises:
        AiraError: they are not, or see `_read`.
    """
    rows, keys = _read(part), {"text", "fate", "harmless", "reward"}
    if [row.get("prompt") for row in rows] != prompts:
        raise AiraError(f"{part} holds other prompts than those that are asked. {DELETE_FILE}")
    if not all(keys <= candidate.keys() for row in rows for candidate in row["candidates"]):
        raise AiraError(f"{part} is damaged, or no part of a sampling: an answer is not whole. {DELETE_FILE}")
    return rows


def _write_tables(rows: list[dict[str, Any]], output: Path, min_margin: float, model: str) -> None:
    """Write the best answers, and pairs of the best and the worst, with their scores; `model` is the chat model."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    best, pairs = [], []
    for row in rows:
        answers = [candidate for candidate in row["candidates"] if candidate["text"]]
        chosen = next((candidate for candidate in answers if candidate["fate"] == "chosen"), None)
        if chosen is None:
            continue
        scores = {"reward": chosen["reward"], "harmless": chosen["harmless"]}
        best.append({"prompt": row["prompt"], "completion": chosen["text"], **scores})
        worst = min(answers, key=lambda candidate: candidate["reward"])
        if chosen["reward"] - worst["reward"] > min_margin:
            pair = {"prompt": row["prompt"], "chosen": chosen["text"], "rejected": worst["text"]}
            pairs.append({**pair, "chosen_reward": chosen["reward"], "rejected_reward": worst["reward"]})
    provenance = {b"aira": (output / "settings.json").read_bytes()}
    for name, table in (("best", best), ("pairs", pairs)):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(table).replace_schema_metadata(provenance), sink)
        write_atomically(output / name / "train.parquet", sink.getvalue().to_pybytes())
    rewards = [candidate["reward"] for row in rows for candidate in row["candidates"]]
    mean = sum(rewards) / len(rewards)
    mean_best = sum(row["reward"] for row in best) / max(1, len(best))
    print(
        f"{len(rows)} prompts, {len(rewards)} answers of mean reward {mean:.3f}; {len(best)} best ones of mean "
        f"{mean_best:.3f} in {output / 'best'}; {len(pairs)} pairs in {output / 'pairs'}"
    )
    if pairs:
        data_path, model_path = quoted_override("data.path", output / "pairs"), quoted_override("model.path", model)
        print(f"Next: aira train method=dpo {data_path} {model_path}")


if __name__ == "__main__":
    main()
