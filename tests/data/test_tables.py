"""What is kept of files, and when it is read anew."""

import multiprocessing
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import aira.data.sources
import aira.data.tables
from aira.data.sources import read
from aira.errors import AiraError
from tests.data.conftest import conversations
from tests.data.files import A, B, fill, lines, number


def test_a_folder_whose_files_change_names(write, cache, tmp_path):
    """Catches a run that trains on its own test set: contents and times are as they were."""
    fill(write, "train.jsonl validation.jsonl")
    folder = tmp_path / "files"
    for file in folder.iterdir():
        os.utime(file, ns=(0, 0))
    before = read(str(folder), cache_dir=str(cache))
    (folder / "train.jsonl").rename(folder / "x")
    (folder / "validation.jsonl").rename(folder / "train.jsonl")
    (folder / "x").rename(folder / "validation.jsonl")
    after = read(str(folder), cache_dir=str(cache))
    assert [source.split("train")[0]["a"] for source in (before, after)] == ["0", "1"] and before.key != after.key


def replace(file, content):
    """New content under the time of the old."""
    about = file.stat()
    file.write_text(content)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_file_that_is_replaced_under_its_time(write, module, tmp_path):
    """Catches rows and tokens of a file that is no longer there: by `cp -p`, by a link, after `touch`."""
    path = Path(write("a.jsonl", lines(*({"prompt": f"old {i}", "completion": "x"} for i in range(4)))))
    new = path.read_text().replace("old", "new")
    asked = [talk[0]["content"] for talk in conversations(module(path))]
    replace(path, new)
    found = module(path)
    assert sorted(talk[0]["content"] for talk in conversations(found)) == sorted(
        text.replace("old", "new") for text in asked
    )
    ids = found.tokenizer("new", add_special_tokens=False)["input_ids"]
    assert set(ids) <= set(found.train.encoded[0]["branches"][0])
    path.touch()
    assert module(path).key == found.key
    path.unlink()
    other = tmp_path / "other.jsonl"
    other.write_text(new.replace("new", "newer"))
    path.symlink_to(other)
    assert all("newer" in talk[0]["content"] for talk in conversations(module(path)))


def test_a_card_is_no_way_out(write, cache, tmp_path):
    """Catches `configs` of a README that read files outside of the folder, or another split than the names say."""
    outside = write("outside.jsonl", number(9))
    write("data/train.jsonl", number(0))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {outside}\n---\n"
    write("data/README.md", card)
    assert [row["a"] for row in read(str(tmp_path / "files/data"), cache_dir=str(cache)).split("train")] == ["0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: b"",
        lambda table: b"x" * 100,
        lambda table: table[: len(table) // 2],
        lambda table: table[:-8],
        lambda table: table[:-100],
        lambda table: table[:-50] + bytes(50),
        lambda table: table + b"more",
    ],
)
def test_a_damaged_table_is_made_again(write, cache, damage):
    """Catches rows that are missing since a process was killed, also where the cut is between two batches."""
    path = write("a.jsonl", lines(*({"a": str(i)} for i in range(2500))))
    expected = read(path, cache_dir=str(cache)).split("train").to_list()
    (table,) = cache.rglob("*.arrow")
    table.write_bytes(damage(table.read_bytes()))
    assert read(path, cache_dir=str(cache)).split("train").to_list() == expected


def test_a_table_that_lacks_its_last_batch(write, cache):
    """Catches an Arrow stream that ends between two batches: it reads without an error."""
    path = write("a.jsonl", lines(*({"a": str(i)} for i in range(2500))))
    read(path, cache_dir=str(cache))
    (table,) = cache.rglob("*.arrow")
    with pa.memory_map(str(table)) as source:
        reader = pa.ipc.open_stream(source)
        reader.read_next_batch()
        end = source.tell()
    table.write_bytes(table.read_bytes()[:end])
    assert len(read(path, cache_dir=str(cache)).split("train")) == 2500


def test_a_file_that_changes_while_it_is_read(write, cache, monkeypatch):
    """Catches rows of two versions in one table, and a table under the key of another version."""
    path = Path(write("a.jsonl", lines(A, B)))

    def reading(file, original=aira.data.tables.read_rows):
        rows = list(original(file))
        file.write_text(lines(B, A))
        yield from rows

    monkeypatch.setattr("aira.data.tables.read_rows", reading)
    with pytest.raises(AiraError, match=r"a\.jsonl changed while it was read"):
        read(str(path), cache_dir=str(cache))
    monkeypatch.undo()
    path.write_text(lines(A, B))
    assert read(str(path), cache_dir=str(cache)).split("train").to_list() == [A, B]


def test_two_processes_at_once(write, cache):
    """Catches a table that one process reads while another writes it."""
    path = write("a.jsonl", lines(*({"a": str(i)} for i in range(3000))))
    forked = multiprocessing.get_context("fork")
    barrier, found = forked.Barrier(3), forked.Queue()

    def work():
        barrier.wait(60)
        found.put([row["a"] for row in read(path, cache_dir=str(cache)).split("train")])

    processes = [forked.Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in processes] == [[str(i) for i in range(3000)]] * 3
    assert len(list(cache.rglob("*.arrow"))) == 1 and not list(cache.rglob("*.part"))


def test_the_key(write, cache, tmp_path, monkeypatch):
    """Catches rows of other bytes, names, splits, formats or readers that have one key, and a copy that has another."""
    folders = {
        "plain": {"train.csv": "a;b\n1;x\n"},
        "bytes": {"train.csv": "a;b\n1;y\n"},
        "name": {"train-2.csv": "a;b\n1;x\n"},
        "split": {"test.csv": "a;b\n1;x\n"},
        "format": {"train.tsv": "a;b\n1;x\n"},
        "folder": {"train/train.csv": "a;b\n1;x\n"},
        "one more": {"train.csv": "a;b\n1;x\n", "test.csv": "a;b\n1;x\n"},
        "twice": {"train.csv": "a;b\n1;x\n", "train-2.csv": "a;b\n1;x\n"},
        "cut elsewhere": {"train.csv": "a;b\n1;x\n1;x\n"},
    }
    for name, files in folders.items():
        for file, content in files.items():
            write(f"{name}/{file}", content)
    keys = {name: read(str(tmp_path / "files" / name), cache_dir=str(cache)).key for name in folders}
    shutil.copytree(tmp_path / "files/plain", tmp_path / "copy")
    assert read(str(tmp_path / "copy"), cache_dir=str(cache)).key == keys["plain"]
    monkeypatch.setattr(aira.data.sources, "READER", aira.data.tables.READER + 1)
    keys["reader"] = read(str(tmp_path / "files/plain"), cache_dir=str(cache)).key
    assert len(set(keys.values())) == len(keys), keys


def test_parquet_keeps_the_names_of_classes(cache, tmp_path):
    """Catches classes whose names are lost, in one file and in several, and files that name them otherwise."""
    names = Features({"text": Value("string"), "label": ClassLabel(names=["fine", "toxic"])})
    rows = Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": 0}], features=names)
    for part in (0, 1):
        rows.to_parquet(tmp_path / "data" / f"train-0000{part}-of-00002.parquet")
    for path, count in ((tmp_path / "data", 4), (tmp_path / "data/train-00000-of-00002.parquet", 2)):
        found = read(str(path), cache_dir=str(cache)).split("train")
        assert found.features == names and len(found) == count and found.features["label"].names == ["fine", "toxic"]
    other = Features({"text": Value("string"), "label": ClassLabel(names=["toxic", "fine"])})
    rows.cast(other).to_parquet(tmp_path / "data" / "train-00002-of-00003.parquet")
    with pytest.raises(AiraError, match="class names differ"):
        read(str(tmp_path / "data"), cache_dir=str(cache))


def test_parquet_of_types_that_fit(cache, tmp_path):
    """Catches an empty column of one part that has the other parts refused."""
    for i, (row, kind) in enumerate([({"a": None, "b": 1}, pa.int32()), ({"a": "x", "b": 2**40}, pa.int64())]):
        table = pa.Table.from_pylist([row])
        pq.write_table(table.set_column(1, "b", table["b"].cast(kind)), tmp_path / f"part{i}.parquet")
    assert read(str(tmp_path), cache_dir=str(cache)).split("train").to_list() == [
        {"a": None, "b": 1},
        {"a": "x", "b": 2**40},
    ]
