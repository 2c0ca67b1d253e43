"""Rows of JSON, JSON lines, CSV and TSV files, exactly as they stand there, or an error that says which is wrong."""

import codecs
import csv
import gzip
import itertools
import json
import re
import shlex
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aira.data.layout import format_of
from aira.errors import AiraError, reason_of

csv.field_size_limit(sys.maxsize)  # the library's own limit is 128 kB a cell

FOREIGN = {
    b"\x1f\x8b": "compressed by gzip: give it a name that ends in .gz, or unpack it",
    b"PK\x03\x04": "a zip archive (such as .xlsx): unpack it, or export the table as CSV",
    b"\xfd7zXZ\0": "compressed by xz: unpack it",
    b"BZh91AY&SY": "compressed by bzip2: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"PAR1\x15": "parquet: give it a name that ends in .parquet",
    b"ARROW1\0": "an Arrow table: write it as parquet, or as JSON lines",
}
"""How files begin that are no text, and what to do with one."""

MARKS = {  # the longer first, of which another is the beginning
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
BOMS = re.compile(rb"\A(?:\xef\xbb\xbf)+")

DEEPEST = 50
"""Lists and objects in one another; an Arrow table holds 63."""

BEFORE = re.compile(r"\A[\s\ufeff]+")
"""What may stand before a row: spaces, and a mark of byte order where files were put one behind another."""

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Decimal(float):
    """A number of JSON with its literal text: 3.10 and 1e5 are other texts than 3.1 and 100000.0."""

    def __init__(self, literal: str) -> None:
        self.literal = literal


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a text file, one by one; cells of CSV and TSV are text, values of JSON are as json.loads has them.

    A `.json` file holds a list of objects, an object whose `data` is one, or an object a line.

    Raises:
        AiraError: a row is not of the format; the message names file and row.
    """
    yield from (_csv_rows if format_of(file) in (".csv", ".tsv") else _json_rows)(file)


def _lines(file: Path) -> Iterator[str]:
    """The lines of a text file, compressed or not, with their ends; CR ends them in a file that has no LF."""
    number = 0
    packed = file.suffix.lower() == ".gz"
    try:
        with (gzip.open if packed else open)(file, "rb") as stream:
            first = stream.readline()
            _check_text(file, first)
            first = BOMS.sub(b"", first)
            alone = not first.endswith(b"\n")  # the whole file, so that nothing follows
            for raw in itertools.chain(re.findall(rb"[^\r]*\r|[^\r]+", first) if alone else [first], stream):
                number += 1
                if b"\0" in raw:
                    raise AiraError(f"{file}, line {number}: a byte is zero, so it is no text, or not UTF-8.")
                yield raw.decode()
    except UnicodeDecodeError as error:
        said = f"{file}, line {number}: this is not UTF-8 ({error.reason})."
        raise AiraError(f"{said} If it is Latin-1, {_conversion(file, 'LATIN1')}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AiraError(f"{file}: the compressed file is damaged or cut: {reason_of(error)}.") from error
    except OSError as error:
        raise AiraError(f"{file} could not be read: {error.strerror or reason_of(error)}.") from error


def _check_text(file: Path, first: bytes) -> None:
    """Whether a file's first line is not that of another format, or of another encoding than UTF-8."""
    for mark, what in FOREIGN.items():
        if first.startswith(mark):
            raise AiraError(f"{file}: what it holds is no text but {what}.")
    for mark, encoding in MARKS.items():
        if first.startswith(mark):
            raise AiraError(f"{file}: this is {encoding}, not UTF-8: {_conversion(file, encoding)}")


def _conversion(file: Path, encoding: str) -> str:
    """How a file is written anew in UTF-8."""
    name = shlex.quote(str(file))
    to = f"iconv -f {encoding} -t UTF-8"
    command = f"gzip -dc {name} | {to}" if file.suffix.lower() == ".gz" else f"{to} {name}"
    new = file.with_name(f"{file.name.partition('.')[0]}.utf8{''.join(file.suffixes).removesuffix('.gz')}")
    return f"`{command} > {shlex.quote(str(new))}` converts it."


REASONS = {
    "end of data": "a quote is opened and not closed",
    "new-line character": "a carriage return (CR) stands in a cell without quotes",
}
"""What the library's errors mean."""


def _csv_rows(file: Path) -> Iterator[dict[str, str]]:
    lines = _lines(file)
    first = next(lines, "")
    separators = (
        "\t" if format_of(file) == ".tsv" else ",;\t"
    )  # the one that makes the most columns; of equal ones, ","
    separator = max(separators, key=lambda sign: len(next(csv.reader([first.split("\r")[0]], delimiter=sign), [])))
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    header: list[str] | None = None
    start = 0  # the line that the last row ended at
    if re.match('"?sep=', first):
        raise AiraError(f"{file}, line 1: `sep=` is for Excel alone, and no header. Take the line out.")
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = next((said for sign, said in REASONS.items() if sign in str(error)), str(error))
            raise AiraError(f"{file}, line {start + 1}: this is not CSV: {reason}.") from error
        if cells is None:
            return
        place, start = f"{file}, line {start + 1}", reader.line_num
        if not cells:
            continue
        if header is None:
            header = ["Unnamed: 0", *cells[1:]] if cells[0] == "" and len(cells) > 1 else cells  # an index of pandas
            _check_names(place, header)
        elif len(cells) != len(header):
            raise AiraError(f"{place}: {len(cells)} cells, and {len(header)} columns: {', '.join(header)[:200]}.")
        else:
            yield dict(zip(header, cells, strict=True))


def _check_names(place: str, names: list[str]) -> None:
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise AiraError(f"{place}: column {number} has no name.")
        if "\0" in name:
            raise AiraError(f"{place}: the name of column {number} has a zero character, which a table cannot hold.")
        if name in seen:
            raise AiraError(f"{place}: two columns have the name {name}. Rename one.")
        seen.add(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the name {twice!r} stands twice in an object")
    return made


TOO_DEEP = f"lists and objects are nested too deep, in more than {DEEPEST} of one another."

_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=Decimal,
    parse_constant=Decimal,
    parse_int=lambda digits: Decimal(digits) if digits == "-0" else int(digits),
)


def _parsed(place: str, text: str, whole: bool = False) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if whole else f"column {error.colno}"
        raise AiraError(f"{place}: this is not JSON: {error.msg} ({where}).") from error
    except ValueError as error:
        raise AiraError(f"{place}: {error}.") from error
    except RecursionError as error:
        raise AiraError(f"{place}: {TOO_DEEP}") from error


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    rows: Iterator[tuple[str, Any]]
    if format_of(file) == ".json" and not _by_line(file):
        rows = ((f"{file}, row {i}", row) for i, row in enumerate(_unwrapped(file), start=1))
    else:
        rows = _json_lines(file)
    known: set[str] = set()
    for place, row in rows:
        if not isinstance(row, dict):
            raise AiraError(f'{place}: a row is an object such as {{"prompt": …}}, not {json.dumps(row)[:40]}.')
        if not known.issuperset(row):
            _check_names(place, list(row))
            if known and known.isdisjoint(row):
                raise AiraError(f"{place}: it has other columns than the rows before: {', '.join(row)}.")
            known.update(row)
        yield row


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    row = 0
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            row += 1
            place = f"{file}, row {row}" + (f" (line {number})" if row != number else "")
            if line.strip() in ("{", "["):
                raise AiraError(
                    f"{place}: a row is one line here. A list, or one object, of several lines is a .json file."
                )
            value = _parsed(place, BEFORE.sub(lambda found: " " * len(found[0]), line.rstrip()))
            _check_row(place, value, *_doubts(line))
            yield place, value


def _by_line(file: Path) -> bool:
    """Whether a .json file has an object a line; one with a single line is read as a whole."""
    first = list(itertools.islice((line for line in _lines(file) if line.strip()), 2))
    try:
        return len(first) == 2 and isinstance(_DECODER.decode(first[0].strip()), dict)
    except (ValueError, RecursionError):
        return False


def _unwrapped(file: Path) -> list[Any]:
    """The rows of a .json file that is one list, an object with a list `data`, or one row."""
    text = "".join(_lines(file))
    value = _parsed(str(file), text, whole=True) if text.strip() else []
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        others = [name for name, part in value.items() if name != "data" and isinstance(part, list | dict)]
        if others:
            raise AiraError(
                f"{file}: beside `data` it has {', '.join(others)}. Write the rows that are meant as a list."
            )
        value = value["data"]
    rows = value if isinstance(value, list) else [value]
    doubts = _doubts(text)
    for i, row in enumerate(rows, start=1):
        _check_row(f"{file}, row {i}", row, *doubts)
    return rows


def _doubts(text: str) -> tuple[bool, bool]:
    """Whether rows of a text of JSON may be nested too deep, and whether halves of characters may stand in them."""
    return text.count("[") + text.count("{") > DEEPEST, bool(SURROGATE.search(text))


def _check_row(place: str, row: Any, deep: bool, escapes: bool) -> None:
    """Whether a table can hold a row: how nested it is where `deep`, and its texts where `escapes`."""
    level: list[Any] = [[row]] if deep else [[]]
    for _ in range(DEEPEST + 1):
        parts = (part for one in level for part in (one.values() if isinstance(one, dict) else one))
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            break
    else:
        raise AiraError(f"{place}: {TOO_DEEP}")
    try:
        if escapes:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise AiraError(
            f"{place}: {half} is half of a character, and no text can hold it. Mend the row or take it out."
        ) from error
