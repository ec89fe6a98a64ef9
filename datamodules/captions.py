"""Tables of image paths and captions, read row by row so that what is wrong with one can be told by its number."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Columns", "Record", "Strings", "read_table", "row_name"]


@dataclass(frozen=True)
class Columns:
    """Where a table (or the members of a shard) has what."""

    image: str | None
    captions: tuple[str, ...]
    label: str | None = None
    split: str | None = None

    def names(self) -> list[str]:
        return [name for name in (self.image, *self.captions, self.label, self.split) if name is not None]


@dataclass(slots=True)
class Record:
    """An image with its captions, at least one, none of them empty.

    Attributes:
        image: what names it: a path, or a shard and a member of it.
        captions: the first is the one that evaluation takes.
        label: the name of its class; empty for none.
        split: what its row says of that; empty where nothing does.
        place: number of its line or row; or where its bytes lie: shard, offset and length.
    """

    image: str
    captions: tuple[str, ...]
    label: str
    split: str
    place: tuple[int, ...]


class Strings:
    """Many strings in two arrays, not N objects, whose reference counts would make every worker copy them."""

    def __init__(self, values: Iterable[str]) -> None:
        encoded = [value.encode() for value in values]
        self._ends = np.fromiter(accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        return self._bytes[self._ends[i] : self._ends[i + 1]].tobytes().decode()


def read_table(path: Path, columns: Columns) -> tuple[list[Record], list[str]]:
    """The images of a table with all their captions, in its order, and what was left out.

    Rows of the same image are one image: its captions are those of all rows.

    Args:
        path: a CSV file with a header (``.csv``; ``.tsv`` and ``.tab`` with tabs) in UTF-8, or a Parquet file
            (``.parquet``, ``.pq``; a column of captions may hold lists).
        columns: their names.

    Returns:
        Records, and for each bad row a text that begins with its number: lines of a CSV file count from 1, the header,
        rows of a Parquet file from 1.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file without pyarrow.
        ValueError: not a table, or without some of the columns.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table {path.absolute()}; say with --data.root and --data.table which file it is")
    suffix = path.suffix.lower()
    if suffix in _PARQUET:
        return _records(_parquet_rows(path, columns), columns, row_name(path))
    if suffix in _DELIMITERS:
        return _records(_csv_rows(path, columns, _DELIMITERS[suffix]), columns, row_name(path))
    raise ValueError(f"table must end in {', '.join((*_DELIMITERS, *_PARQUET))}, got {path.name!r}")


def row_name(path: Path) -> str:
    """What messages say before the number of a row of this table."""
    return f"{path.name} {'row' if path.suffix.lower() in _PARQUET else 'line'}"


_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")

# A row: its number, and either what its columns hold by name, or what is wrong with it.
_Row = tuple[int, dict[str, Any] | str]


def _records(rows: Iterator[_Row], columns: Columns, where: str) -> tuple[list[Record], list[str]]:
    records: dict[str, Record] = {}
    captions_of: dict[str, dict[str, None]] = {}  # each once, in order
    bad = []
    assert columns.image is not None
    for number, cells in rows:
        if isinstance(cells, str):
            bad.append(f"{where} {number}: {cells}")
            continue
        image = cells[columns.image]
        captions = tuple(caption for name in columns.captions for caption in _texts(cells[name]))
        if not image:
            bad.append(f"{where} {number}: no image (column {columns.image!r} is empty)")
            continue
        if not captions:
            bad.append(f"{where} {number}: the caption of {image} is empty")
            continue
        label = cells[columns.label] if columns.label is not None else ""
        split = cells[columns.split] if columns.split is not None else ""
        first = records.setdefault(image, Record(image, (), label, split, (number,)))
        if (first.label, first.split) != (label, split):
            told = "split" if first.split != split else "label"
            bad.append(f"{where} {number}: {image} has another {told} than on {where.split()[-1]} {first.place[0]}")
            continue
        captions_of.setdefault(image, {}).update(dict.fromkeys(captions))
    for image, record in records.items():
        record.captions = tuple(captions_of[image])
    return list(records.values()), bad


def _texts(cell: str | list[str]) -> list[str]:
    return [text for text in (cell if isinstance(cell, list) else [cell]) if text]


def _check_columns(path: Path, found: Sequence[str], columns: Columns) -> None:
    for name in columns.names():
        if name not in found:
            raise ValueError(
                f"{path} has no column {name!r}, it has {', '.join(map(repr, found))}; name its columns with "
                "--data.image_column, --data.caption_columns, --data.label_column and --data.split_column"
            )


# CSV


def _csv_rows(path: Path, columns: Columns, delimiter: str) -> Iterator[_Row]:
    # Bytes that are no UTF-8 become surrogates, which are found again in the row that they spoil, and only in that.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = file.readlines()
    rows = _csv_fields(lines, delimiter)
    line, header = next(rows, (1, "the file is empty"))
    if isinstance(header, str) or _not_utf8(header):
        why = header if isinstance(header, str) else "bytes that are no UTF-8"
        raise ValueError(f"{path} line {line} must be a header that names the columns: {why}")
    header = [name.strip() for name in header]
    _check_columns(path, header, columns)
    places = {name: header.index(name) for name in columns.names()}
    for line, fields in rows:
        if isinstance(fields, str):
            yield line, fields
        elif len(fields) != len(header):
            yield line, f"{len(fields)} columns, the header has {len(header)}"
        elif _not_utf8(fields):
            yield line, "bytes that are no UTF-8"
        else:
            yield line, {name: fields[place].strip() for name, place in places.items()}


def _not_utf8(fields: Sequence[str]) -> bool:
    return any(not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text) for text in fields)


def _csv_fields(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Number of the first line and fields of each row, or what is wrong; blank lines are left out.

    A quote that is never closed would swallow the rest of the file: the next line starts anew.
    """
    start = 0
    while start < len(lines):
        rest = (lines[place] for place in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=True)
        done = 0
        try:
            for fields in reader:
                if fields:
                    yield start + done + 1, fields
                done = reader.line_num
            return
        except csv.Error as error:
            yield start + done + 1, f"no CSV ({error})"
            start += done + 1


# Parquet


def _parquet_rows(path: Path, columns: Columns) -> Iterator[_Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("a Parquet table needs pyarrow: pip install 'lit-ssl[parquet]'") from error
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file ({error})") from error
    _check_columns(path, file.schema_arrow.names, columns)
    names = list(dict.fromkeys(columns.names()))
    number = 0
    for batch in file.iter_batches(columns=names):
        cells = [_cells(batch.column(name), name, path, lists=name in columns.captions) for name in names]
        for values in zip(*cells, strict=True):
            number += 1
            try:
                yield number, {name: _decoded(value) for name, value in zip(names, values, strict=True)}
            except UnicodeDecodeError:
                yield number, "bytes that are no UTF-8"


def _cells(column: Any, name: str, path: Path, lists: bool) -> list[Any]:
    """Python values of a column: bytes for strings, so that a bad one spoils its row and not the file."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.large_binary()).to_pylist()
    if lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        if pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type):
            return column.cast(pa.large_list(pa.large_binary())).to_pylist()
    elif pa.types.is_integer(kind) or pa.types.is_null(kind):
        return column.to_pylist()
    allowed = "strings, lists of strings or integers" if lists else "strings or integers"
    raise ValueError(f"{path}: column {name!r} must hold {allowed}, got {kind}")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode().strip() if isinstance(value, bytes) else "" if value is None else str(value)
