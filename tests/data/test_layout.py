"""Which files of a folder are read, and as which split."""

import multiprocessing
import os
import re
import tempfile
from pathlib import Path

import pytest

from aira.data.module import DataModule
from aira.data.sources import read
from aira.errors import AiraError
from aira.models.loading import load_tokenizer
from tests.data.conftest import TINY
from tests.data.files import A, fill, lines, number, parquet

FOLDERS = {
    "a file a split": ("train.jsonl test.jsonl dev.jsonl", {"train": [0], "validation": [2], "test": [1]}, []),
    "words of splits": ("train.jsonl valid.jsonl", {"train": [0], "validation": [1]}, []),
    "val": ("training.csv val.csv", {"train": [0], "validation": [1]}, []),
    "capitals": ("TRAIN.JSONL Validation.jsonl", {"train": [0], "validation": [1]}, []),
    "further words": ("train_v2.jsonl test-2024.jsonl", {"train": [0], "test": [1]}, []),
    "the hub's words": (
        "train.jsonl testing.jsonl evaluation.csv",
        {"train": [0], "test": [2, 1]},
        ["several formats"],
    ),
    "a set for evaluation": ("training.csv my-eval.csv", {"train": [0], "test": [1]}, []),
    "words of another language": (
        "treino.jsonl teste.jsonl",
        {"train": [1, 0]},
        ["no name says a split, so all files are read as train: teste.jsonl, treino.jsonl"],
    ),
    "words that are joined": ("trainset.jsonl testSet.jsonl", {"train": [1, 0]}, ["testSet.jsonl, trainset.jsonl"]),
    "words at the end": (
        "told.train.csv told-dev.csv told_br_test_binary.csv",
        {"train": [0], "validation": [1], "test": [2]},
        [],
    ),
    "the first word decides": ("train_test.jsonl test_train.jsonl", {"train": [0], "test": [1]}, []),
    "folders": ("train/1.jsonl train/2.jsonl test/1.jsonl", {"train": [0, 1], "test": [2]}, []),
    "folders below folders": ("x/train/en/1.jsonl x/test/en/1.jsonl", {"train": [0], "test": [1]}, []),
    "the file's name before the folder's": ("test/train.jsonl", {"train": [0]}, []),
    "the hub's parts": (
        "data/train-00000-of-00002.parquet data/train-00001-of-00002-9f.parquet",
        {"train": [0, 1]},
        [],
    ),
    "the hub's splits": (
        "data/english-00000-of-00001.parquet data/train-00000-of-00001.parquet",
        {"train": [1], "english": [0]},
        [],
    ),
    "a part is missing": (
        "train-00000-of-00003.jsonl train-00002-of-00003.jsonl",
        {"train": [0, 1]},
        ["2 of 3 parts of train"],
    ),
    "no split's name": (
        "a.jsonl b.jsonl latest.jsonl contest.jsonl",
        {"train": [0, 1, 3, 2]},
        ["all files are read as train: a.jsonl, b.jsonl, contest.jsonl, latest.jsonl"],
    ),
    "some without": (
        "train.jsonl more.jsonl latest.jsonl contest.jsonl",
        {"train": [0]},
        ["left out contest.jsonl, latest.jsonl, more.jsonl"],
    ),
    "words within words": (
        "train.jsonl retrain.jsonl device.jsonl",
        {"train": [0]},
        ["left out device.jsonl, retrain.jsonl"],
    ),
    "two formats": ("a.jsonl b.csv c.tsv", {"train": [0, 1, 2]}, [".csv, .jsonl, .tsv"]),
    "names like patterns": ("glob[1].jsonl glob1.jsonl star*.jsonl", {"train": [1, 0, 2]}, ["glob[1].jsonl, star*"]),
    "one dot more": ("v1.0-train.jsonl v1.0-test.jsonl", {"train": [0], "test": [1]}, []),
    "hidden": (
        "train.jsonl .train.jsonl .ipynb_checkpoints/train.jsonl __MACOSX/train.jsonl",
        {"train": [0]},
        [".train.jsonl, __MACOSX/train.jsonl: hidden"],
    ),
    "other formats": (
        "train.jsonl b.txt c.arrow d.jsonl.zst LICENSE README.md",
        {"train": [0]},
        ["b.txt", "c.arrow", "d.jsonl.zst"],
    ),
    "no ending": (
        "train.jsonl test validation/part-1 LICENSE _SUCCESS x.py y.yaml",
        {"train": [0]},
        ["left out test, validation/part-1: a file without an ending is not read"],
    ),
    "about the data": ("a.jsonl dataset_info.json", {"train": [0]}, ["left out dataset_info.json"]),
    "a folder named as a file": ("x.jsonl/train.jsonl", {"train": [0]}, []),
    "many without": (" ".join(f"x{i}.jsonl" for i in range(9)) + " train.csv", {"train": [9]}, ["and 4 more"]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(write, cache, tmp_path, case):
    """Catches a file that is read as another split, twice, or not at all without a word."""
    names, expected, told = FOLDERS[case]
    fill(write, names)
    source = read(str(tmp_path / "files"), cache_dir=str(cache))
    assert {split: [int(row["a"]) for row in rows] for split, rows in source.splits.items()} == expected
    assert all(any(part in line for line in source.notices) for part in told) and bool(source.notices) == bool(told), (
        source.notices
    )


REFUSED_FOLDERS = {
    "two splits in a name": ({"my_train_test.jsonl": lines(A)}, ["my_train_test.jsonl", "test and train"]),
    "other columns": (
        {"a.jsonl": lines(A), "b.csv": "a,c\n1,2\n"},
        ["b.csv", "a.jsonl alone has b; b.csv alone has c"],
    ),
    "other columns of parquet": (
        {"a.parquet": parquet([A]), "b.parquet": parquet([{"a": "1"}])},
        ["a.parquet alone has b"],
    ),
    "parquet and text": (
        {"a.parquet": parquet([A]), "b.csv": "a,b\n1,x\n"},
        ["a.parquet and b.csv cannot be read together"],
    ),
    "parquet of other types": (
        {"a.parquet": parquet([{"a": "x"}]), "b.parquet": parquet([{"a": 1}])},
        ["types of its columns"],
    ),
    "an empty file": ({"a.jsonl": lines(A), "b.jsonl": ""}, ["b.jsonl is empty"]),
    "a header alone": ({"a.jsonl": lines(A), "b.csv": "a,b\n"}, ["b.csv", "it has no rows"]),
    "a broken file": ({"train.jsonl": lines(A), "test.jsonl": "{"}, ["test.jsonl, row 1"]),
    "nothing to read": ({"a.txt": "x"}, ["holds no .json", "left out a.txt"]),
    "hidden alone": ({".a.jsonl": lines(A)}, ["holds no .json", ".a.jsonl"]),
}


@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_refused_folders(write, cache, tmp_path, case):
    """Catches files that are left out, or read as if their columns were those of the others."""
    files, fragments = REFUSED_FOLDERS[case]
    for name, content in files.items():
        write(name, content)
    with pytest.raises(AiraError) as caught:
        read(str(tmp_path / "files"), cache_dir=str(cache))
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)


def test_no_such_split_says_what_was_left_out(write, cache, tmp_path):
    """Catches a message that has the user look for a file that is there."""
    fill(write, "mine.jsonl validation.jsonl")
    with pytest.raises(AiraError, match=r"no split 'train'. It has: validation\. .* left out mine\.jsonl"):
        read(str(tmp_path / "files"), cache_dir=str(cache)).split("train")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_rows_are_numbered_by_file(write, module, tmp_path, form):
    """Catches the number of a row in all files together, which no file has, also where the table is a kept one."""
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(4)]
    header = "prompt,completion\n"
    for name, some in {
        "a": rows[:3],
        "x/b": [rows[3], {"prompt": "q", "completion": ""}, {**rows[0], "prompt": "</s>"}],
    }.items():
        table = header + "".join(",".join(row.values()) + "\n" for row in some)
        write(f"{name}.{form}", {"jsonl": lines(*some), "csv": table, "parquet": parquet(some)}[form])
    for _ in range(2):
        said = str(module(tmp_path / "files").notices)
        assert f"dropped 1 of 6 rows: empty completion (first: row 2 of {tmp_path}/files/x/b.{form})" in said
    for damaged in ("", "[1]", '["x", "y"]', "{}"):  # the counts beside the kept table
        for kept in tmp_path.glob("cache/tables/*.json"):
            kept.write_text(damaged)
        assert "empty completion (first: row 5)" in str(module(tmp_path / "files").notices)


def test_a_label_is_named_by_its_file(write, cache, tmp_path):
    """Catches the same in an error."""
    for name, label in {"a": 1, "b": "weird"}.items():
        write(
            f"{name}.jsonl",
            [{"text": f"{name}{i}", "label": i % 2} for i in range(3)] + [{"text": "x", "label": label}],
        )
    with pytest.raises(AiraError, match=r"row 4 of .*/b\.jsonl: the label 'weird' is neither"):
        DataModule(
            load_tokenizer(TINY, head="score")[0],
            kind="labelled",
            head="score",
            path=str(tmp_path / "files"),
            cache_dir=str(cache),
        )


def test_what_was_left_out_is_told_before_training(write, module, tmp_path):
    """Catches a notice that is not printed: `DataModule.notices` is."""
    rows = [{"prompt": str(i), "completion": "x"} for i in range(4)]
    write("train.jsonl", rows)
    write("more.jsonl", rows)
    assert any("left out more.jsonl" in line for line in module(tmp_path / "files").notices)


def test_patterns(write, cache, tmp_path):
    """Catches a pattern that is not told, that reaches a neighbour, or that is taken for a hub id."""
    fill(write, "part1.jsonl part2.jsonl other.jsonl sub/part3.jsonl")
    source = read(str(tmp_path / "files" / "part*.jsonl"), cache_dir=str(cache))
    assert sorted(row["a"] for row in source.split("train")) == ["0", "1"]
    assert "matched 2 files: part1.jsonl, part2.jsonl" in source.notices[0]
    assert len(read(str(tmp_path / "files/**/part*.jsonl"), cache_dir=str(cache)).split("train")) == 3
    fill(write, "d[1]/a.jsonl d1/b.jsonl")
    write("d[1]/a.jsonl", number(7))
    assert [row["a"] for row in read(str(tmp_path / "files/d[1]/*.jsonl"), cache_dir=str(cache)).split("train")] == [
        "7"
    ]
    for pattern in ("none*.jsonl", "[x].jsonl", "no/*"):
        with pytest.raises(AiraError, match="by this pattern"):
            read(str(tmp_path / "files" / pattern), cache_dir=str(cache))


def test_links(write, cache, tmp_path):
    """Catches a link to a folder that is not followed, one that leads back, and one to nothing."""
    fill(write, "real/train/1.jsonl")
    folder = tmp_path / "files" / "linked"
    folder.mkdir()
    (folder / "train").symlink_to("../real/train")
    (folder / "train" / "back").symlink_to("../..")
    assert [row["a"] for row in read(str(folder), cache_dir=str(cache)).split("train")] == ["0"]
    (folder / "test-gone.jsonl").symlink_to("nowhere.jsonl")
    (folder / "train-loop.jsonl").symlink_to("train-loop.jsonl")
    for name, fragments in {
        "test-gone.jsonl": ["no such file", "a link to nowhere.jsonl"],
        "train-loop.jsonl": ["train-loop.jsonl"],
    }.items():
        with pytest.raises(AiraError) as caught:
            read(str(folder / name), cache_dir=str(cache))
        assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
        with pytest.raises(AiraError, match=r"(gone|loop)\.jsonl could not be read"):
            read(str(folder), cache_dir=str(cache))
        (folder / name).unlink()


def test_pipe(write, cache, tmp_path):
    """Catches a wait for ever for a pipe that nobody writes to, and a device that is said to have another ending."""
    fill(write, "train.jsonl")
    os.mkfifo(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "files/test.jsonl")
    for path in (tmp_path / "a.jsonl", tmp_path / "files", "/dev/null", "/dev/zero"):
        with pytest.raises(AiraError, match="not a regular file"):
            read(str(path), cache_dir=str(cache))


@pytest.mark.parametrize(
    "path, said",
    {
        "": "data.path is empty",
        " ": "data.path is empty",
        "nowhere": "There is no file or folder nowhere here",
        "my/data.txt": "data.path=my/data.txt: there is no such file or folder",
        "pkg://": "it has the form pkg://<package>/",
        "pkg:///train.jsonl": "it has the form pkg://<package>/",
        "pkg://.data/x": "it has the form pkg://<package>/",
        "pkg://aira.dada/sample": "the package aira, which is installed, has no aira.dada",
        "pkg://aira_nowhere/x": "pip install --no-deps aira-nowhere",
    }.items(),
)
def test_paths_to_nothing(cache, path, said):
    """Catches the working directory that is read for no name, and advice that names a package that is not one."""
    with pytest.raises(AiraError, match=re.escape(said)):
        read(path, cache_dir=str(cache))


def test_no_permission():
    """Catches a traceback for a file or folder of somebody else."""

    def attempt(folder):
        if os.geteuid() == 0:
            os.seteuid(65534)
        for path in ("closed.jsonl", "closed", "closed/a.jsonl", "open"):
            with pytest.raises(AiraError, match="Permission denied"):
                read(f"{folder}/{path}", cache_dir=f"{folder}/cache")
        with pytest.raises(AiraError, match=r"cannot be written to \(Permission denied\).*cache_dir="):
            read(f"{folder}/a.jsonl", cache_dir=f"{folder}/cache")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("closed.jsonl", "closed/a.jsonl", "open/train/a.jsonl", "a.jsonl"):
            (folder / file).parent.mkdir(exist_ok=True, parents=True)
            (folder / file).write_text(lines(A))
        (folder / "cache").mkdir(mode=0o555)
        modes = {"closed.jsonl": 0, "closed": 0, "open/train": 0, ".": 0o755}
        for part, mode in modes.items():
            (folder / part).chmod(mode)
        process = multiprocessing.get_context("fork").Process(target=attempt, args=(folder,))
        process.start()
        process.join(60)
        for part in modes:
            (folder / part).chmod(0o755)
        assert process.exitcode == 0
