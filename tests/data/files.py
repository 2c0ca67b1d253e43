"""Contents of small files, for tests of reading."""

import json

import pyarrow as pa
import pyarrow.parquet as pq


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(rows, schema=None):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue().to_pybytes()


def text(name, *cells):
    """Rows of one column."""
    return [{name: cell} for cell in cells]


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
A, B = {"a": "1", "b": "x"}, {"a": "2", "b": "y"}


def number(i, form="jsonl"):
    """A file of one row that says which it is."""
    return {"jsonl": lines({"a": str(i)}), "csv": f"a\n{i}\n", "tsv": f"a\n{i}\n", "parquet": parquet([{"a": str(i)}])}[
        form
    ]


def fill(write, names):
    """Write files of one row each, numbered in the order of their names here."""
    for i, name in enumerate(names.split()):
        form = name.rpartition(".")[2].lower()
        write(name, number(i, form if form in ("csv", "tsv", "parquet") else "jsonl"))
