"""Rows of JSON, JSON lines, CSV and TSV files, exactly as written, or an error that says which row is wrong."""

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
"""The first bytes of files that are not text, and what to do with such a file."""

MARKS = {  # longer ones first, since one begins with another
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
BOMS = re.compile(rb"\A(?:\xef\xbb\xbf)+")

DEEPEST = 50
"""Levels of nested lists and objects; an Arrow table holds 63."""

BEFORE = re.compile(r"\A[\s\ufeff]+")
"""What may precede a row: spaces, and a byte order mark where files were concatenated."""

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Decimal(float):
    """A JSON number with its literal text: 3.10 and 1e5 are different texts from 3.1 and 100000.0."""

    def __init__(self, literal: str) -> None:
        self.literal = literal


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a text file, one by one; cells of CSV and TSV are text, values of JSON are those of json.loads.

    A `.json` file holds a list of objects, an object whose `data` is such a list, or one object per line.

    Raises:
        AiraError: a row does not have the format; the message names the file and the row.
    """
    yield from (_csv_rows if format_of(file) in (".csv", ".tsv") else _json_rows)(file)


def _lines(file: Path) -> Iterator[str]:
    """The lines of a text file, compressed or not, with their line ends; CR ends lines in a file without LF."""
    number = 0
    compressed = file.suffix.lower() == ".gz"
    try:
        with (gzip.open if compressed else open)(file, "rb") as stream:
            first = stream.readline()
            _check_text(file, first)
            first = BOMS.sub(b"", first)
            without_lf = not first.endswith(b"\n")  # then it is the whole file, and nothing follows
            for raw in itertools.chain(re.findall(rb"[^\r]*\r|[^\r]+", first) if without_lf else [first], stream):
                number += 1
                if b"\0" in raw:
                    raise AiraError(f"{file}, line {number}: there is a zero byte, so it is not text, or not UTF-8.")
                yield raw.decode()
    except UnicodeDecodeError as error:
        message = f"{file}, line {number}: this is not UTF-8 ({error.reason})."
        raise AiraError(f"{message} If it is Latin-1, {_conversion(file, 'LATIN1')}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AiraError(f"{file}: the compressed file is damaged or truncated: {reason_of(error)}.") from error
    except OSError as error:
        raise AiraError(f"{file} could not be read: {error.strerror or reason_of(error)}.") from error


def _check_text(file: Path, first: bytes) -> None:
    """Check that a file's first line is not that of another format, or of another encoding than UTF-8."""
    for mark, description in FOREIGN.items():
        if first.startswith(mark):
            raise AiraError(f"{file}: it is not text, but {description}.")
    for mark, encoding in MARKS.items():
        if first.startswith(mark):
            raise AiraError(f"{file}: this is {encoding}, not UTF-8: {_conversion(file, encoding)}")


def _conversion(file: Path, encoding: str) -> str:
    """The command that rewrites a file in UTF-8."""
    name = shlex.quote(str(file))
    to = f"iconv -f {encoding} -t UTF-8"
    command = f"gzip -dc {name} | {to}" if file.suffix.lower() == ".gz" else f"{to} {name}"
    new = file.with_name(f"{file.name.partition('.')[0]}.utf8{''.join(file.suffixes).removesuffix('.gz')}")
    return f"`{command} > {shlex.quote(str(new))}` converts it."


REASONS = {
    "end of data": "a quote is opened and not closed",
    "new-line character": "there is a carriage return (CR) in a cell without quotes",
}
"""The meaning of the csv library's errors."""


def _csv_rows(file: Path) -> Iterator[dict[str, str]]:
    lines = _lines(file)
    first = next(lines, "")
    separators = "\t" if format_of(file) == ".tsv" else ",;\t"
    # the one that makes the most columns; a tie goes to ","
    separator = max(separators, key=lambda sign: len(next(csv.reader([first.split("\r")[0]], delimiter=sign), [])))
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    header: list[str] | None = None
    start = 0  # the line at which the previous row ended
    if re.match('"?sep=', first):
        raise AiraError(f"{file}, line 1: `sep=` is for Excel only, and not a header. Remove the line.")
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = next((meaning for text, meaning in REASONS.items() if text in str(error)), str(error))
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
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the name {duplicate!r} occurs twice in an object")
    return mapping


TOO_DEEP = f"lists and objects are nested more than {DEEPEST} levels deep."

_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=Decimal,
    parse_constant=Decimal,
    parse_int=lambda digits: Decimal(digits) if digits == "-0" else int(digits),
)


def _parse(place: str, text: str, whole: bool = False) -> Any:
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
    if format_of(file) == ".json" and not _is_json_lines(file):
        rows = ((f"{file}, row {i}", row) for i, row in enumerate(_document_rows(file), start=1))
    else:
        rows = _json_lines(file)
    columns: set[str] = set()
    for place, row in rows:
        if not isinstance(row, dict):
            raise AiraError(f'{place}: a row is an object such as {{"prompt": …}}, not {json.dumps(row)[:40]}.')
        if not columns.issuperset(row):
            _check_names(place, list(row))
            if columns and columns.isdisjoint(row):
                raise AiraError(f"{place}: it has other columns than the rows before: {', '.join(row)}.")
            columns.update(row)
        yield row


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    row = 0
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            row += 1
            place = f"{file}, row {row}" + (f" (line {number})" if row != number else "")
            if line.strip() in ("{", "["):
                raise AiraError(
                    f"{place}: each row must be one line. A list or an object over several lines is a .json file."
                )
            value = _parse(place, BEFORE.sub(lambda match: " " * len(match[0]), line.rstrip()))
            _check_row(place, value, *_needed_checks(line))
            yield place, value


def _is_json_lines(file: Path) -> bool:
    """Whether a .json file has one object per line; a file of a single line is read as a whole."""
    first = list(itertools.islice((line for line in _lines(file) if line.strip()), 2))
    try:
        return len(first) == 2 and isinstance(_DECODER.decode(first[0].strip()), dict)
    except (ValueError, RecursionError):
        return False


def _document_rows(file: Path) -> list[Any]:
    """The rows of a .json file that is one list, an object with a list `data`, or one row."""
    text = "".join(_lines(file))
    value = _parse(str(file), text, whole=True) if text.strip() else []
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        others = [name for name, part in value.items() if name != "data" and isinstance(part, list | dict)]
        if others:
            raise AiraError(f"{file}: besides `data` it has {', '.join(others)}. Write the rows to be read as a list.")
        value = value["data"]
    rows = value if isinstance(value, list) else [value]
    checks = _needed_checks(text)
    for i, row in enumerate(rows, start=1):
        _check_row(f"{file}, row {i}", row, *checks)
    return rows


def _needed_checks(text: str) -> tuple[bool, bool]:
    """Whether rows of a JSON text may be nested too deep, and whether they may have unpaired surrogates."""
    return text.count("[") + text.count("{") > DEEPEST, bool(SURROGATE.search(text))


def _check_row(place: str, row: Any, deep: bool, escapes: bool) -> None:
    """Check that a table can hold a row: how deep it is nested if `deep`, and its texts if `escapes`."""
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
            f"{place}: {half} is half of a character, which text cannot hold. Fix or remove the row."
        ) from error
