"""The preference pairs of the DPO and reward benchmarks."""

import sys
from typing import Any

from study import DATA, ROOT, Arguments, made_up, steps_of, turn

sys.path.insert(0, str(ROOT))


def pairs_of(arguments: Arguments) -> list[dict[str, Any]]:
    """Rows {prompt, chosen, rejected}, each a list of chat messages: the first of HH-RLHF's harmless dialogues."""
    from aira.data.schemas import preference
    from aira.data.texts import BadRow

    count = steps_of(arguments) * arguments.batch_size
    if arguments.quick:
        return [
            {"prompt": turn("user", p), "chosen": turn("assistant", c), "rejected": turn("assistant", r)}
            for p, c, r in made_up(count)
        ]
    import json

    found: list[dict[str, Any]] = []
    for line in (DATA / "hh_rlhf_harmless_base_test.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            chosen, rejected = preference(json.loads(line)).conversations
        except BadRow:
            continue
        found.append({"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]})
    if len(found) < count:
        raise SystemExit(f"{count} pairs are needed, {len(found)} are there")
    return found[:count]
