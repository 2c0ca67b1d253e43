"""What data costs before the first step: time and memory against the number of examples.

    python benchmarks/startup.py [--rows 10000 100000 1000000] [--num-proc 2] [--format parquet]

The embedded instructions, repeated with a number in front of each prompt, in one file. A first process reads and
tokenizes them, a second one finds all of it in the cache; each reports the seconds until the first batch is ready, and
its peak memory beyond what it held with the libraries and the tokenizer loaded. Memory-mapped pages that the system
can take back at any time are told apart (``RssFile``).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as parquet
from common import resident

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

SAMPLE = ROOT / "aira" / "data" / "sample" / "instruction-en" / "train.jsonl"


def measure(file: str, cache: str, num_proc: int) -> dict[str, float]:
    from aira.data.module import DataModule
    from aira.models.loading import load_tokenizer

    tokenizer, _ = load_tokenizer("pkg://aira.models/tiny/causal")
    before, start = resident("RssAnon"), time.perf_counter()
    data = DataModule(tokenizer, kind="instruction", path=file, cache_dir=cache, num_proc=num_proc)
    data.trainer = SimpleNamespace(max_steps=100, global_step=0, global_rank=0, world_size=1, strategy=None)
    next(iter(data.train_dataloader()))
    seconds = time.perf_counter() - start
    anonymous, mapped = resident("RssAnon") - before, resident("RssFile")
    return {"seconds": seconds, "anonymous": anonymous / 2**20, "mapped": mapped / 2**20}


def write(file: Path, rows: int) -> None:
    sample = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    made = [{**sample[i % len(sample)], "prompt": f"{i}. {sample[i % len(sample)]['prompt']}"} for i in range(rows)]
    if file.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(made), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--num-proc", type=int, default=2)
    parser.add_argument("--format", choices=["parquet", "jsonl"], default="parquet")
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child, arguments.num_proc)))
        return
    print("| examples | file, MB | start | seconds to the first batch | memory of its own, MB | mapped files, MB |")
    print("|--:|--:|---|--:|--:|--:|")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"rows.{arguments.format}"
            write(file, rows)
            for name in ("first", "again"):
                command = [sys.executable, __file__, "--child", str(file), f"{folder}/cache"]
                done = subprocess.run([*command, "--num-proc", str(arguments.num_proc)], capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                size = file.stat().st_size / 2**20
                figures = f"{found['seconds']:.1f} | {found['anonymous']:.0f} | {found['mapped']:.0f}"
                print(f"| {rows} | {size:.0f} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
