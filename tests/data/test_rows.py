"""What is read from a file on disk: every cell exactly, or nothing and an error that says where."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aira.data.sources import read
from aira.errors import AiraError
from tests.data.files import TURNS, A, B, lines, parquet, text

WORDS = ["None", "NA", "null", "nan", "N/A", "NULL", "NaN", "-nan", "1.#IND", "", " "]
DIGITS = ["00123", "1e5", "0x1F", "1_000", "3.10", "-0", "2024-01-31", "true", "False", "12:30", "+5", "1,5"]
LATE = [*range(2500), "so", 1.5, True, None]


def nested(depth, empty=False):
    """A list in a list …, and an object in an object …"""
    lists, objects = [] if empty else [1], {} if empty else {"x": 1}
    for _ in range(depth - 1):
        lists, objects = [lists], {"x": objects}
    return {"a": lists, "b": objects}


def zipped(content):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.csv", content)
    return sink.getvalue()


READ = {
    "a cell of each kind of text": ("a.csv", "a\n" + "".join(f'"{word}"\n' for word in DIGITS), text("a", *DIGITS)),
    "words for nothing": ("a.csv", "a\n" + "".join(f'"{word}"\n' for word in WORDS), text("a", *WORDS)),
    "digits without quotes": ("a.csv", "a,b\n00123,1\n7,2.50\n", [{"a": "00123", "b": "1"}, {"a": "7", "b": "2.50"}]),
    "quoted line breaks, quotes, commas": ("a.csv", 'a,b\n"1\n\n2","x ""y"", z"\n', [{"a": "1\n\n2", "b": 'x "y", z'}]),
    "CRLF": ("a.csv", 'a,b\r\n1,x\r\n"2\r\n3",y\r\n', [A, {"a": "2\r\n3", "b": "y"}]),
    "CR alone": ("a.csv", "a,b\r1,x\r2,y\r", [A, B]),
    "CR alone, no line end at the end": ("a.tsv", "a\tb\r\r1\tx\r2\ty", [A, B]),
    "CR alone, and in quotes": ("a.csv", 'a,b\r"1\r2",x\r', [{"a": "1\r2", "b": "x"}]),
    "JSON lines by other names": ("a.ndjson", lines(A, B), [A, B]),
    "JSON lines by other names, compressed": ("a.JSONLines.gz", gzip.compress(lines(A, B).encode()), [A, B]),
    "CR alone in JSON lines": ("a.jsonl", lines(A, B).replace("\n", "\r"), [A, B]),
    "CR alone in a list": ("a.json", json.dumps([A, B], indent=1).replace("\n", "\r"), [A, B]),
    "CR alone, compressed": ("a.jsonl.gz", gzip.compress(lines(A, B).replace("\n", "\r").encode()), [A, B]),
    "two marks of byte order": ("a.csv", b"\xef\xbb\xbf\xef\xbb\xbfa,b\n1,x\n", [A]),
    "a mark of byte order before each of two files": ("a.jsonl", ("\ufeff" + lines(A) + "\ufeff" + lines(B)), [A, B]),
    "a mark of byte order before a quote": ("a.csv", '\ufeff"a","b"\n1,x\n', [A]),
    "a name as a format begins": ("a.csv", "PAR1,PK\n1,x\n", [{"PAR1": "1", "PK": "x"}]),
    "zeros behind a compressed file": ("a.jsonl.gz", gzip.compress(lines(A).encode()) + bytes(512), [A]),
    "a mark of byte order": ("a.csv", b"\xef\xbb\xbfa,b\n1,x\n", [A]),
    "a mark of byte order in JSON": ("a.jsonl", b'\xef\xbb\xbf{"a": "1", "b": "x"}\n', [A]),
    "semicolons": ("a.csv", "a;b\n1;x\n2;y\n", [A, B]),
    "semicolons and commas": ("a.csv", 'a;b\n"1,5";x, y\n', [{"a": "1,5", "b": "x, y"}]),
    "tabs in .csv": ("a.csv", "a\tb\n1\tx\n", [A]),
    "tabs": ("a.tsv", "a\tb\n1\tx, y; z\n", [{"a": "1", "b": "x, y; z"}]),
    "compressed CSV": ("a.csv.gz", gzip.compress(b"a,b\n1,x\n"), [A]),
    "compressed TSV": ("a.tsv.gz", gzip.compress(b"a\tb\n1\tx\n"), [A]),
    "compressed JSON lines": ("a.jsonl.gz", gzip.compress(lines(A, B).encode()), [A, B]),
    "compressed in two members": (
        "a.jsonl.gz",
        gzip.compress(lines(A).encode()) + gzip.compress(lines(B).encode()),
        [A, B],
    ),
    "endings in capitals": ("A.CSV", "a,b\n1,x\n", [A]),
    "no line end at the end": ("a.csv", "a,b\n1,x", [A]),
    "blank lines in CSV": ("a.csv", "\na,b\n\n1,x\n\n", [A]),
    "a big cell": ("a.csv", f"a,b\n1,{'x' * 300_000}\n", [{"a": "1", "b": "x" * 300_000}]),
    "an index of pandas": ("a.csv", ",a,b\n0,1,x\n", [{"Unnamed: 0": "0", **A}]),
    "one column": ("a.csv", "a\nx\n", text("a", "x")),
    "a row of an empty cell": ("a.csv", 'a\n""\nx\n', text("a", "", "x")),
    "line separators of Unicode": (
        "a.jsonl",
        lines({"a": "x\u2028y\u0085z\x0b\x0c"}),
        text("a", "x\u2028y\u0085z\x0b\x0c"),
    ),
    "line separators of Unicode in CSV": ("a.csv", "a,b\n1,x\u2028y\x0bz\n", [{"a": "1", "b": "x\u2028y\x0bz"}]),
    "blank lines": ("a.jsonl", "\n" + lines(A) + "\n  \n" + lines(B) + "\n", [A, B]),
    "CRLF in JSON lines": ("a.jsonl", lines(A, B).replace("\n", "\r\n"), [A, B]),
    "a list": ("a.json", json.dumps([A, B], indent=1), [A, B]),
    "a list on one line": ("a.json", json.dumps([A, B]), [A, B]),
    "data": ("a.json", json.dumps({"version": 1, "data": [A, B]}), [A, B]),
    "data over several lines": ("a.json", json.dumps({"data": [A, B]}, indent=1), [A, B]),
    "an object a line": ("a.json", lines(A, B), [A, B]),
    "an object a line with data": ("a.json", lines({"data": [A]}, {"data": [B]}), [{"data": [A]}, {"data": [B]}]),
    "one object": ("a.json", json.dumps(A, indent=1), [A]),
    "whole numbers": ("a.jsonl", lines(*text("a", 1, -5, None, 2**62)), text("a", 1, -5, None, 2**62)),
    "decimals": ("a.jsonl", lines(*text("a", 0.1, 2.5, 1e-5)), text("a", 0.1, 2.5, 1e-5)),
    "true and false": ("a.jsonl", lines(*text("a", True, None, False)), text("a", True, None, False)),
    "numbers of both kinds": ("a.jsonl", lines(*text("a", 1, 0.5)), text("a", 1, 0.5)),
    "a text after numbers": (
        "a.jsonl",
        lines(*text("a", *LATE)),
        text("a", *map(str, range(2500)), "so", "1.5", "true", None),
    ),
    "literal numbers": (
        "a.jsonl",
        '{"a": 3.10}\n{"a": 1e5}\n{"a": 007}\n'.replace("007", '"007"'),
        text("a", "3.10", "1e5", "007"),
    ),
    "minus zero": ("a.jsonl", '{"a": -0}\n{"a": -0.0}\n{"a": "x"}\n', text("a", "-0", "-0.0", "x")),
    "nested deep": ("a.jsonl", lines(nested(49)), [nested(49)]),
    "nested deep and empty": ("a.json", json.dumps([nested(49, empty=True)]), [nested(49, empty=True)]),
    "a number of many digits": ("a.jsonl", '{"a": 123456789012345678901}\n', text("a", "123456789012345678901")),
    "NaN among numbers of a text column": ("a.jsonl", '{"a": NaN}\n{"a": "x"}\n', text("a", None, "x")),
    "a list after texts": ("a.jsonl", lines(*text("a", *["x"] * 1500, TURNS, 5)), text("a", *["x"] * 1500, TURNS, 5)),
    "turns": ("a.jsonl", lines({"a": TURNS}, {"a": TURNS * 2}), [{"a": TURNS}, {"a": TURNS * 2}]),
    "turns of several forms": (
        "a.jsonl",
        lines({"a": TURNS}, {"a": [{"role": "user", "name": "n"}]}),
        [{"a": TURNS}, {"a": [{"role": "user", "name": "n"}]}],
    ),
    "an object's decimals": (
        "a.jsonl",
        lines({"a": {"x": 0.12345678901234567}}, {"a": {"y": 0.1}}),
        [{"a": {"x": 0.12345678901234567}}, {"a": {"y": 0.1}}],
    ),
    "an empty object and list": (
        "a.jsonl",
        lines({"a": {}, "b": []}, {"a": {"x": 1}, "b": [1]}),
        [{"a": {}, "b": []}, {"a": {"x": 1}, "b": [1]}],
    ),
    "a column that comes late": ("a.jsonl", lines(*[{"a": "x"}] * 1500, A), [{"a": "x", "b": None}] * 1500 + [A]),
    "emoji as escapes": ("a.jsonl", '{"a": "\\ud83d\\ude00"}\n', text("a", "😀")),
    "a zero character as an escape": ("a.jsonl", '{"a": "x\\u0000y"}\n', text("a", "x\0y")),
    "parquet": ("a.parquet", parquet([{"a": 1, "b": "x", "c": TURNS}]), [{"a": 1, "b": "x", "c": TURNS}]),
    "parquet of categories": (
        "a.parquet",
        parquet([A, B], pa.schema([("a", pa.dictionary(pa.int8(), pa.string())), ("b", pa.large_string())])),
        [A, B],
    ),
    "a name that is a pattern": ("glob[1].jsonl", lines(A), [A]),
    "a name with a star": ("star*.jsonl", lines(A), [A]),
    "a name with spaces, braces, percent": ("a {b}%20#?.jsonl", lines(A), [A]),
    "a name of another split": ("test.jsonl", lines(A), [A]),
    "a hidden file that is named": (".a.jsonl", lines(A), [A]),
}


@pytest.mark.parametrize("case", READ)
def test_rows(write, cache, case):
    """Catches a cell that is read as another value, a row that is lost, and a name that is taken for a pattern."""
    name, content, expected = READ[case]
    path = write(name, content)
    for neighbour in ("glob1.jsonl", "starry.jsonl", "a.jsonl.txt"):
        write(neighbour, lines({"a": "neighbour", "b": "neighbour"}))
    source = read(path, cache_dir=str(cache))
    for rows in (source.split("train"), read(path, cache_dir=str(cache)).split("train")):  # made, and kept
        assert list(rows) == rows.to_list() == expected
        assert [[type(cell) for cell in row.values()] for row in rows] == [
            [*map(type, row.values())] for row in expected
        ]
    assert list(source.splits) == ["train"] and not source.notices


BIG = parquet([{"a": str(i), "b": "x" * 50} for i in range(3000)])
INVALID = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])


def foreign():
    """A parquet file with a text that is not UTF-8."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": INVALID}), sink)
    return sink.getvalue().to_pybytes()


def headed(told, **columns):
    """A parquet file of two columns, in whose head stands what the datasets library would have written."""
    sink = pa.BufferOutputStream()
    table = pa.table({"a": ["x"], **columns})
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), sink)
    return sink.getvalue().to_pybytes()


def names_of(**names):
    """The same of a column of classes."""
    return headed(json.dumps({"info": {"features": {"a": {"dtype": "string", "_type": "Value"}, "b": names}}}), b=[1])


HEAD = ["types of its columns, by the file's metadata, are not supported"]

REFUSED = {
    "a cell too many": ("a.csv", "a,b\n1,x\n2,y,z\n", ["line 3", "3 cells, and 2 columns: a, b"]),
    "a cell too many in every row": ("a.csv", "a,b\n1,x,y\n2,y,z\n", ["line 2", "3 cells, and 2 columns"]),
    "a cell too few": ("a.csv", "a,b\n1\n", ["line 2", "1 cells, and 2 columns"]),
    "after line breaks in cells": ("a.csv", 'a,b\n"1\n\n",x\n2\n', ["line 5", "1 cells"]),
    "after a gap": ("a.tsv", "a\tb\n\n\n1 x\n", ["line 4", "1 cells"]),
    "an open quote": ("a.csv", 'a,b\n1,x\n2,"y\n3,z\n', ["line 3", "a quote is opened and not closed"]),
    "text after a quote": ("a.csv", 'a,b\n1,"x"y\n', ["line 2", "not CSV"]),
    "a name twice": ("a.csv", "a,b,a\n1,2,3\n", ["line 1", "two columns have the name a"]),
    "no name": ("a.csv", "a,,b\n1,2,3\n", ["line 1", "column 2 has no name"]),
    "a trailing comma": ("a.csv", "a,b,\n1,2,3\n", ["line 1", "column 3 has no name"]),
    "a header alone": ("a.csv", "a,b\n", ["it has no rows"]),
    "blank lines alone": ("a.jsonl", "\n \n", ["it has no rows"]),
    "an empty list": ("a.json", "[]", ["it has no rows"]),
    "empty": ("a.jsonl", "", ["a.jsonl is empty"]),
    "compressed and empty": ("a.jsonl.gz", gzip.compress(b""), ["it has no rows"]),
    "UTF-16": ("a.csv", "a,b\n1,x\n".encode("utf-16"), ["UTF-16", "iconv -f UTF-16"]),
    "UTF-16 in JSON": ("a.jsonl", lines(A).encode("utf-16"), ["UTF-16"]),
    "UTF-16 without a mark": ("a.csv", "a,b\n1,x\n".encode("utf-16-le"), ["line 1", "there is a zero byte"]),
    "UTF-32": ("a.csv", "a,b\n1,x\n".encode("utf-32"), ["this is UTF-32", "iconv -f UTF-32"]),
    "UTF-32, the high byte first": (
        "a.csv",
        b"\0\0\xfe\xff" + "a,b\n1,x\n".encode("utf-32-be"),
        ["this is UTF-32", "iconv -f UTF-32"],
    ),
    "compressed UTF-16": ("a.csv.gz", gzip.compress("a\n".encode("utf-16")), ["gzip -dc ", " | iconv -f UTF-16"]),
    "compressed Latin-1": ("a.csv.gz", gzip.compress(b"a\n\xe9\n"), ["line 2", "gzip -dc ", " | iconv -f LATIN1"]),
    "Latin-1 in a name with a space": ("a b.csv", b"a\n\xe9\n", ["line 2", "/a b.csv' > ", "/a b.utf8.csv'"]),
    "Latin-1 with CR alone": ("a.csv", b"a\rx\r\xe9\r", ["line 3", "not UTF-8"]),
    "a zero byte": ("a.csv", "a,b\n1,x\n2,\0\n", ["line 3", "there is a zero byte"]),
    "Latin-1": ("a.csv", "a,b\n1,x\n2,é\n".encode("latin-1"), ["line 3", "not UTF-8", "iconv"]),
    "Latin-1 in JSON": ("a.jsonl", b'{"a": "x"}\n{"a": "\xe9"}\n', ["line 2", "not UTF-8"]),
    "half a character": (
        "a.jsonl",
        lines(A, A) + '\n{"a": "\\ud800", "b": ""}\n',
        ["row 3 (line 4)", "\\ud800", "half"],
    ),
    "half a character in a turn": ("a.jsonl", lines(A) + '{"a": [{"x": "\\udfff"}]}\n', ["row 2", "\\udfff"]),
    "half a character in a name": ("a.jsonl", '{"\\udead": 1}\n', ["row 1", "\\udead"]),
    "half a character in a list": ("a.json", '[{"a": "x"}, {"a": "\\ud800"}]', ["row 2", "half"]),
    "half a character after a whole one": ("a.jsonl", '{"a": "\\ud83d\\ude00\\ud83d"}\n', ["row 1", "\\ud83d"]),
    "a key twice": ("a.jsonl", lines(A) + '{"a": 1, "b": 2, "a": 3}\n', ["row 2", "'a' occurs twice"]),
    "a key of a turn twice": ("a.jsonl", '{"a": [{"x": 1, "x": 2}]}\n', ["row 1", "'x' occurs twice"]),
    "no key": ("a.jsonl", lines(A) + '{"a": 1, "": 2}\n', ["row 2", "column 2 has no name"]),
    "a zero character in a key": ("a.jsonl", '{"a\\u0000": 1}\n', ["row 1", "zero character"]),
    "other columns": (
        "a.jsonl",
        lines(A, {"question": "x"}),
        ["row 2", "other columns than the rows before: question"],
    ),
    "a row on many lines": (
        "a.jsonl",
        json.dumps(A, indent=1),
        ["row 1", "must be one line", ".json file"],
    ),
    "a list on several lines": ("a.jsonl", json.dumps([A, B], indent=1), ["row 1", "must be one line"]),
    "a line for Excel": ("a.csv", "sep=;\na;b\n1;x\n", ["line 1", "`sep=` is for Excel", "Remove the line"]),
    "a cut row": ("a.jsonl", lines(A) + '{"a": "x', ["row 2", "not JSON", "column 7"]),
    "two objects on a line": ("a.jsonl", lines(A).strip() + lines(B), ["row 1", "not JSON"]),
    "a list of texts": ("a.json", '["a", "b"]', ["row 1", "a row is an object"]),
    "a list a line": ("a.jsonl", '{"a": 1}\n[1, 2]\n', ["row 2", "a row is an object"]),
    "a list in .jsonl": ("a.jsonl", json.dumps([A, B]), ["row 1", "a row is an object"]),
    "data and more": ("a.json", json.dumps({"data": [A], "test": [B]}), ["besides `data` it has test"]),
    "a cut list": ("a.json", '[{"a": 1},\n {"a": ', ["not JSON", "line 2"]),
    "nested deeper than a table": ("a.jsonl", lines(A, nested(70)), ["row 2", "levels deep"]),
    "objects nested deeper than a table": (
        "a.jsonl",
        lines({"a": nested(130)["b"]}),
        ["row 1", "levels deep"],
    ),
    "nested deeper than is written": (
        "a.json",
        json.dumps([A, nested(700)]),
        ["row 2", "levels deep"],
    ),
    "nested deeper, with half a character": (
        "a.jsonl",
        '{"b": "\\ud800", "a": ' + "[" * 700 + "]" * 700 + "}\n",
        ["row 1", "levels deep"],
    ),
    "not JSON behind blank lines": ("a.json", '\n\r\n\n[{"a": 1}\n {"a": 2}]', ["not JSON", "line 5, column 2"]),
    "not JSON behind spaces": ("a.jsonl", ' \t \ufeff {"a": x}\n', ["row 1", "not JSON", "column 12"]),
    "nested too deep": (
        "a.jsonl",
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
        ["row 1", "levels deep"],
    ),
    "a number of too many digits": ("a.jsonl", '{"a": ' + "1" * 5000 + "}\n", ["row 1", "digits"]),
    "compressed and cut": ("a.jsonl.gz", gzip.compress(lines(*[A] * 999).encode())[:-20], ["or truncated"]),
    "compressed and changed": ("a.csv.gz", gzip.compress(b"a\nx\n")[:-5] + b"zzzzz", ["or truncated"]),
    "CR in a cell without quotes": ("a.csv", "a,b\n1,x\ry\n", ["line 2", "there is a carriage return (CR) in a cell"]),
    "compressed, and not named so": ("a.jsonl", gzip.compress(lines(A).encode()), ["by gzip", "ends in .gz"]),
    "compressed twice": ("a.csv.gz", gzip.compress(gzip.compress(b"a\nx\n")), ["by gzip", "unpack it"]),
    "zip named CSV": ("a.csv", zipped("a\nx\n"), ["a zip archive", "export the table as CSV"]),
    "xz named JSON lines": ("a.jsonl", lzma.compress(lines(A).encode()), ["by xz"]),
    "bzip2 named CSV": ("a.tsv", bz2.compress(b"a\nx\n"), ["by bzip2"]),
    "zstd named JSON": ("a.json", b"\x28\xb5\x2f\xfd\x04\x00", ["by zstd"]),
    "parquet named CSV": ("a.csv", BIG, ["parquet: give it a name"]),
    "Arrow named JSON lines": ("a.jsonl", b"ARROW1\0\0\x10", ["an Arrow table"]),
    "bytes behind a compressed file": (
        "a.jsonl.gz",
        gzip.compress(lines(A).encode()) + b"more",
        ["or truncated"],
    ),
    "not compressed": ("a.jsonl.gz", lines(A), ["or truncated"]),
    "no parquet": ("a.parquet", b"PAR1 and no more", ["not a parquet file, or damaged"]),
    "parquet that is cut": ("a.parquet", BIG[:-50], ["not a parquet file, or damaged"]),
    "parquet with a hole": ("a.parquet", BIG[:300] + bytes(len(BIG) // 2) + BIG[300 + len(BIG) // 2 :], ["a.parquet"]),
    "parquet of JSON lines": ("a.parquet", lines(A), ["not a parquet file"]),
    "parquet without rows": ("a.parquet", parquet([], pa.schema([("a", pa.string())])), ["it has no rows"]),
    "parquet that is not UTF-8": ("a.parquet", foreign(), ["row 1", "UTF8"]),
    "parquet with a name that is not UTF-8": ("a.parquet", parquet([A]).replace(b"b", b"\xff"), ["a.parquet"]),
    "parquet with a map": (
        "a.parquet",
        parquet([{"a": "x", "b": [("k", 1)]}], pa.schema([("a", pa.string()), ("b", pa.map_(pa.string(), pa.int8()))])),
        ["the type of b is not supported"],
    ),
    "parquet with an identifier": (
        "a.parquet",
        parquet([{"a": "x", "u": bytes(16)}], pa.schema([("a", pa.string()), ("u", pa.uuid())])),
        ["the type of u is not supported"],
    ),
    **{
        f"parquet whose head is {told}": ("a.parquet", headed(told), HEAD)
        for told in (
            "{",
            "5",
            "null",
            "\xff",
            '{"info": 5}',
            '{"info": {"features": 5}}',
            '{"info": {"features": [1]}}',
        )
    },
    "parquet with a number of names": ("a.parquet", names_of(_type="ClassLabel", names=5), HEAD),
    "parquet with no names": ("a.parquet", names_of(_type="ClassLabel"), HEAD),
    "parquet of an unknown kind": ("a.parquet", names_of(_type="Nothing"), HEAD),
    "compressed parquet": ("a.parquet.gz", gzip.compress(BIG), [".gz is not read"]),
    "another format": ("a.xlsx", b"PK", [".xlsx is not read", ".jsonl, .csv, .parquet"]),
    "no ending": ("a", b"x", ["a file without an ending is not read"]),
    "an ending of compression alone": ("a.gz", gzip.compress(lines(A).encode()), [".gz is not read", ".jsonl.gz"]),
    "another compression": ("a.jsonl.xz", lzma.compress(lines(A).encode()), [".xz is not read", ".jsonl.gz"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(write, cache, case):
    """Catches a damaged file that is read as far as it goes, and a message that does not say where it is damaged."""
    name, content, fragments = REFUSED[case]
    path = write(name, content)
    with pytest.raises(AiraError) as caught:
        read(path, cache_dir=str(cache))
    message = str(caught.value)
    assert path in message and all(fragment in message for fragment in fragments), message
    assert not list(cache.rglob("*.arrow")) + list(cache.rglob("*.part")) and len(message) < 1000


# Any rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
NAMES = st.lists(TEXT.filter(lambda name: name.strip() and "\0" not in name), min_size=1, max_size=3, unique=True)


def tables(cells):
    """Rows of the same columns."""
    return NAMES.flatmap(
        lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, cells)), min_size=1, max_size=8)
    )


def expected(rows):
    """What JSON is read as: numbers beside texts, or of more than 64 bits, are their literal text."""
    made = [dict(row) for row in rows]
    for name in rows[0]:
        cells = [row[name] for row in rows]
        big = any(type(cell) is int and not -(2**63) <= cell < 2**63 for cell in cells)
        if (big or any(isinstance(cell, str) for cell in cells)) and not any(isinstance(c, list | dict) for c in cells):
            for row in made:
                value = row[name]
                row[name] = value if value is None or isinstance(value, str) else json.dumps(value)
    return made


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(rows=tables(VALUE), ascii=st.booleans(), form=st.sampled_from(["jsonl", "json"]))
def test_any_json(rows, ascii, form):
    """Catches a value of JSON that comes back as another."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a.{form}"
        dumped = [json.dumps(row, ensure_ascii=ascii) for row in rows]
        file.write_text(
            "\n".join(dumped) if form == "jsonl" else f"[{','.join(dumped)}]", encoding="utf-8", newline="\n"
        )
        found = read(str(file), cache_dir=folder).split("train")
        assert list(found) == found.to_list() == expected(rows)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(rows=tables(TEXT), form=st.sampled_from(["csv", "tsv", "parquet"]), end=st.sampled_from(["\n", "\r\n"]))
def test_any_table(rows, form, end):
    """Catches a cell of text that comes back as another; a zero character, which CSV cannot hold, names its line."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a.{form}"
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            with file.open("w", encoding="utf-8", newline="") as stream:
                made = csv.writer(
                    stream, "excel-tab" if form == "tsv" else "excel", lineterminator=end, quoting=csv.QUOTE_ALL
                )
                made.writerows([list(rows[0]), *([row[name] for name in rows[0]] for row in rows)])
        if form != "parquet" and "\0" in file.read_text(encoding="utf-8"):
            with pytest.raises(AiraError, match=r"a\.[ct]sv, line \d+: there is a zero byte"):
                read(str(file), cache_dir=folder)
        else:
            assert read(str(file), cache_dir=folder).split("train").to_list() == rows
