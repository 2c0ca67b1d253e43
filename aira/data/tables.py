"""The tables of local files: in Arrow's format, memory-mapped, and cached by the files' content."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Json, List, Value
from datasets.table import table_cast
from filelock import FileLock
from tqdm import tqdm

from aira.data.layout import format_of
from aira.data.rows import Decimal, read_rows
from aira.errors import AiraError, reason_of
from aira.files import content_hash, read_json, write_atomically

READER = 2
"""The version of how bytes become rows; a change of the rows increases it, or cached tables would be stale."""

# The library decodes its Json columns with a parser that rounds decimals in their last digit.
datasets.utils.json.ujson_loads = datasets.features.features.ujson_loads = json.loads


def table(path: str, files: list[Path], contents: list[str], table_file: Path) -> Dataset:
    """The table of one split's files: cached, or written by one process of several if it is missing or damaged.

    Args:
        path: as the user named the data, for messages.
        contents: hashes of the files, by `file_hash`.
        table_file: where the table is cached; its name changes with contents, names and `READER`.

    Raises:
        AiraError: a file is not of its format, or they do not make one table.
        OSError: the table cannot be written.
    """
    with suppress(pa.ArrowInvalid, OSError):
        return _open_table(table_file)
    table_file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table_file.with_suffix(".lock")):
        with suppress(pa.ArrowInvalid, OSError):
            return _open_table(table_file)
        _write(path, files, contents, table_file)
    return _open_table(table_file)


def file_hash(file: Path) -> str:
    """A hash of the bytes of a file.

    Raises:
        AiraError: it cannot be read.
    """
    try:
        return content_hash([file])
    except OSError as error:
        raise AiraError(f"{file} could not be read: {error.strerror or reason_of(error)}.") from error


Parts = Sequence[tuple[Path, int]]
"""The files of a split, each with the number of its rows; empty if the numbers are unknown, or there is one file."""


def parts(files: list[Path], table_file: Path) -> Parts:
    """The files of a cached table."""
    counts = read_json(table_file.with_suffix(".json"), list) if len(files) > 1 else None
    if counts is None or len(counts) != len(files) or not all(isinstance(count, int) for count in counts):
        return []
    return list(zip(files, counts, strict=True))


def row_location(files: Parts, index: int) -> str:
    """The location of a row of a split, counted from 0: its number in its file, from 1 on, and the file."""
    for file, count in files:
        if index < count:
            return f"row {index + 1} of {file}"
        index -= count
    return f"row {index + 1}"


ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of an Arrow stream; a stream that is cut between two batches can be read, but lacks them."""


def _open_table(file: Path) -> Dataset:
    """A cached table, memory-mapped.

    Raises:
        OSError, pa.ArrowInvalid: it does not exist, or is damaged.
    """
    with file.open("rb") as stream:
        stream.seek(-8, os.SEEK_END)
        if stream.read() != ARROW_END:
            raise pa.ArrowInvalid(f"{file} is cut short")
    return Dataset.from_file(str(file))


def _write(path: str, files: list[Path], contents: list[str], target: Path) -> None:
    """Write the table of files whose hashes are `contents`, completely or not at all."""
    parquet = [file for file in files if format_of(file) == ".parquet"]
    if parquet and len(parquet) < len(files):
        other = next(file for file in files if file not in parquet)
        raise AiraError(
            f"{path}: {parquet[0].name} and {other.name} cannot be read together. Convert one to the other's format."
        )
    features, batches = _parquet(files) if parquet else _texts(files)
    counts = []
    part = target.with_suffix(".part")
    try:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema) as writer:
            for file in files:
                rows = 0
                for batch in batches(file):
                    rows += batch.num_rows
                    writer.write_table(batch)
                if not rows:
                    raise AiraError(f"{file}: it has no rows.")
                counts.append(rows)
        for file, before in zip(files, contents, strict=True):
            if file_hash(file) != before:
                raise AiraError(f"{file} changed while it was read. Start again once it is fully written.")
        write_atomically(target.with_suffix(".json"), json.dumps(counts))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


Batches = Callable[[Path], Iterator[pa.Table]]
"""Reads the rows of a file as tables of one batch each, with the column types of the whole table."""

BATCH_ROWS, BATCH_SIZE = 1000, 2**25  # rows, characters


def _texts(files: list[Path]) -> tuple[Features, Batches]:
    """The columns of text files, by the values in all of their rows."""
    columns: dict[str, set[Any]] = {}
    for file in files:
        file_columns: dict[str, set[Any]] = {}
        rows = tqdm(read_rows(file), f"Checking {file.name}", unit=" rows", delay=5)
        for row in itertools.islice(rows, 1) if format_of(file) in (".csv", ".tsv") else rows:  # these are text
            for name, value in row.items():
                forms = file_columns.setdefault(name, set())
                forms.add(_form(value) if len(forms) < MOST_FORMS else MIXED)
        if not file_columns:
            raise AiraError(f"{file}: it has no rows.")
        _check_same(files[0], columns or file_columns, file, file_columns)
        for name, forms in file_columns.items():
            columns.setdefault(name, set()).update(forms)
    features = Features({name: _column(forms) for name, forms in columns.items()})

    converters = {name: _json for name, feature in features.items() if feature == Json()}
    converters |= {name: _literal for name, feature in features.items() if feature == Value("string")}

    def batches(file: Path) -> Iterator[pa.Table]:
        cells: dict[str, list[Any]] = {name: [] for name in features}
        count, size = 0, 0
        for row in tqdm(read_rows(file), f"Reading {file.name}", unit=" rows", delay=5):
            for name, column in cells.items():
                value, convert = row.get(name), converters.get(name)
                if convert:
                    value = convert(value)
                    size += len(value or "")
                column.append(value)
            count += 1
            size += 100
            if count == BATCH_ROWS or size > BATCH_SIZE:
                yield pa.Table.from_pydict(cells, schema=features.arrow_schema)
                cells, count, size = {name: [] for name in features}, 0, 0
        if count:
            yield pa.Table.from_pydict(cells, schema=features.arrow_schema)

    return features, batches


MIXED, MOST_FORMS = "mixed", 50
"""The form of values that have no common form, and the most forms that a column may have before it becomes mixed."""


def _form(value: Any, top: bool = True) -> Any:
    """The form of a JSON value: the name of its type, or the forms of its parts.

    Args:
        top: not in a list or object; a top-level number that 64 bits cannot represent exactly becomes text.
    """
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "string" if top else MIXED
    if isinstance(value, Decimal):
        exact = repr(float(value)) == value.literal or value.literal in ("NaN", "Infinity", "-Infinity")
        return "float64" if exact or not top else "string"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "list", frozenset(_form(part, top=False) for part in value)
    return "object", tuple((name, _form(value[name], top=False)) for name in sorted(value))


def _column(forms: set[Any]) -> Any:
    """The type of a column: that of its values; text for texts and numbers; any JSON value for other mixtures."""
    if "string" in forms and MIXED not in forms and all(isinstance(form, str) for form in forms):
        return Value("string")
    return _common_type(forms) or Json()


def _common_type(forms: Iterable[Any]) -> Any:
    """The type that all forms share; None if they have none in common."""
    kinds = set(forms) - {"empty"}
    if not kinds:
        return Value("string")
    if all(isinstance(form, str) for form in kinds):
        return Value(next(iter(kinds))) if len(kinds) == 1 and MIXED not in kinds else None
    if any(isinstance(form, str) for form in kinds) or len({form[0] for form in kinds}) > 1:
        return None
    if next(iter(kinds))[0] == "list":
        inner = _common_type(frozenset().union(*(form[1] for form in kinds)))
        return inner and List(inner)
    parts = [dict(form[1]) for form in kinds]
    if not parts[0] or any(part.keys() != parts[0].keys() for part in parts) or "\0" in "".join(parts[0]):
        return None
    types = {name: _common_type(part[name] for part in parts) for name in parts[0]}
    return None if None in types.values() else types


def _literal(value: Any) -> str | None:
    """A JSON scalar as its text; None for NaN, which stands for a missing number."""
    if type(value) is str:
        return value
    if isinstance(value, Decimal):
        return None if value != value else value.literal
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _check_same(first: Path, first_columns: Iterable[str], file: Path, columns: Iterable[str]) -> None:
    """Check that a file has the columns of the first file of its split."""
    missing, extra = set(first_columns) - set(columns), set(columns) - set(first_columns)
    differing = [
        f"{one.name} alone has {', '.join(sorted(names))}" for one, names in ((first, missing), (file, extra)) if names
    ]
    if differing:
        raise AiraError(
            f"{file} has other columns than {first}: {'; '.join(differing)}. Files of one split are one table: "
            "give them the same columns, or name a single file."
        )


def _parquet(files: list[Path]) -> tuple[Features, Batches]:
    """The columns of parquet files, with the names of classes where the datasets library wrote them."""
    schemas = [_open_parquet(file).schema_arrow for file in files]
    for file, schema in zip(files, schemas, strict=True):
        names = schema.names
        bad = [f"two columns have the name {name}" for name in names if names.count(name) > 1]
        bad += ["a column has no name" for name in names if not name.strip()]
        if bad or not names:
            raise AiraError(f"{file}: {bad[0] if bad else 'it has no columns'}.")
        _check_same(files[0], schemas[0].names, file, names)
    of_files = [_features(file, schema) for file, schema in zip(files, schemas, strict=True)]
    try:
        if all(features == of_files[0] for features in of_files):
            features = of_files[0]
        else:
            if any(isinstance(one, datasets.ClassLabel) for features in of_files for one in features.values()):
                raise AiraError(f"{files[0].parent}: the files' columns or class names differ. Make them the same.")
            decoded = [_decode(schema.remove_metadata()) for schema in schemas]
            features = Features.from_arrow_schema(pa.unify_schemas(decoded, promote_options="permissive"))
    except (pa.ArrowException, NotImplementedError, ValueError) as error:
        raise AiraError(f"{files[0]}: the types of its columns are not supported: {reason_of(error)}") from error
    schema = features.arrow_schema

    def batches(file: Path) -> Iterator[pa.Table]:
        row = 1
        try:
            for batch in _open_parquet(file).iter_batches(batch_size=BATCH_ROWS):
                table = pa.Table.from_batches([batch]).select(schema.names)
                table = table.cast(_decode(table.schema))
                table.validate(full=True)
                yield table_cast(table, schema).replace_schema_metadata(schema.metadata)
                row += len(table)
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise AiraError(f"{file}, row {row} or after: it could not be read: {reason_of(error)}") from error

    return features, batches


def _features(file: Path, schema: pa.Schema) -> Features:
    """The columns of a parquet file as the datasets library has them, by its own metadata in the file if present."""
    failing = []
    try:
        for one in schema.remove_metadata():
            failing = [one.name]
            Features.from_arrow_schema(_decode(pa.schema([one])))
        failing = []
        return Features.from_arrow_schema(_decode(schema))
    except Exception as error:  # the metadata of others' files can raise nearly anything
        subject = f"type of {failing[0]} is" if failing else "types of its columns, by the file's metadata, are"
        raise AiraError(f"{file}: the {subject} not supported: {reason_of(error)}") from error


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = reason_of(error)
        raise AiraError(f"{file} could not be read: it is not a parquet file, or damaged: {reason}") from error


def _decode(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionary-encoded columns and string views as ordinary columns."""
    for i, one in enumerate(schema):
        kind = one.type.value_type if pa.types.is_dictionary(one.type) else one.type
        kind = pa.string() if pa.types.is_string_view(kind) else kind
        schema = schema.set(i, one.with_type(kind))
    return schema
