"""Rows of JSON, JSON lines, CSV and TSV files, exactly as they stand there, or an error that says which is wrong."""

import codecs
import csv
import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aira.data.layout import format_of
from aira.errors import AiraError, reason_of

csv.field_size_limit(sys.maxsize)  # the library's own limit is 128 kB a cell

UNICODE_MARKS = ((codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"), (codecs.BOM_UTF32_BE, "UTF-32"))

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
    """The lines of a text file, compressed or not, with their ends."""
    number = 0
    try:
        with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as stream:
            for raw in stream:
                number += 1
                if number == 1:
                    for mark, encoding in UNICODE_MARKS:
                        if raw.startswith(mark):
                            convert = f"iconv -f {encoding} -t UTF-8 {file} > <a new file>"
                            raise AiraError(f"{file}: this is {encoding}, not UTF-8. `{convert}` converts it.")
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if b"\0" in raw:
                    raise AiraError(f"{file}, line {number}: a byte is zero, so it is no text, or not UTF-8.")
                yield raw.decode()
    except UnicodeDecodeError as error:
        convert = f"iconv -f LATIN1 -t UTF-8 {file} > <a new file>"
        said = f"{file}, line {number}: this is not UTF-8 ({error.reason})."
        raise AiraError(f"{said} If it is Latin-1, `{convert}` converts it.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AiraError(f"{file}: the compressed file is damaged or cut: {reason_of(error)}.") from error
    except OSError as error:
        raise AiraError(f"{file} could not be read: {error.strerror or reason_of(error)}.") from error


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
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = "a quote is opened and not closed" if "end of data" in str(error) else str(error)
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
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise AiraError(f"{place}: column {number} has no name.")
        if "\0" in name:
            raise AiraError(f"{place}: the name of column {number} has a zero character, which a table cannot hold.")
        if names.index(name) < number - 1:
            raise AiraError(f"{place}: two columns have the name {name}. Rename one.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the name {twice!r} stands twice in an object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=Decimal, parse_constant=Decimal)


def _parsed(place: str, text: str, whole: bool = False) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if whole else f"column {error.colno}"
        raise AiraError(f"{place}: this is not JSON: {error.msg} ({where}).") from error
    except ValueError as error:
        raise AiraError(f"{place}: {error}.") from error
    except RecursionError as error:
        raise AiraError(f"{place}: lists and objects are nested too deep.") from error


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
            value = _parsed(place, line.strip())
            if SURROGATE.search(line):
                _check_encodable(place, value)
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
    text = "".join(_lines(file)).strip()
    value = _parsed(str(file), text, whole=True) if text else []
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        others = [name for name, part in value.items() if name != "data" and isinstance(part, list | dict)]
        if others:
            raise AiraError(
                f"{file}: beside `data` it has {', '.join(others)}. Write the rows that are meant as a list."
            )
        value = value["data"]
    rows = value if isinstance(value, list) else [value]
    if SURROGATE.search(text):
        for i, row in enumerate(rows, start=1):
            _check_encodable(f"{file}, row {i}", row)
    return rows


def _check_encodable(place: str, row: Any) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise AiraError(
            f"{place}: {half} is half of a character, and no text can hold it. Mend the row or take it out."
        ) from error
