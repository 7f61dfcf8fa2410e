"""Texts in rows: one field of JSON lines, one column of a Parquet table.

A row of null is an empty text. What is no text, a field that is missing in a line, a column that is not there: an
error that names the line, the fields or columns that there are, and the flag that chooses among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.core.artifacts import parse_line
from luthier.core.data.packed import decoded, open_file
from luthier.core.errors import InputError, did_you_mean

__all__ = ["COLUMN", "of_lines", "of_table"]

COLUMN = "text"
TEXT_TYPES = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null"}  # Arrow's names
NAMES = 20  # of fields or columns, in a message


def of_table(path: Path, column: str) -> Iterator[tuple[int, str]]:
    """Number and text of each row of a Parquet file, one group of rows in memory at a time."""
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f'{path}: Parquet is read by pyarrow, which is not installed: pip install "luthier[parquet]"'
        ) from error
    try:
        table = parquet.ParquetFile(path, page_checksum_verification=True)  # where the file has sums
    except Exception as error:  # pyarrow raises its own classes, which only it knows
        raise InputError(
            f"{path}: not a Parquet file: {str(error).splitlines()[0]}\nGet it again, or name it as what it is."
        ) from error
    with table:
        _check_column(path, {field.name: str(field.type) for field in table.schema_arrow}, column)
        number = 0
        try:
            for batch in table.iter_batches(columns=[column], batch_size=1024):
                for cell in batch.column(0):
                    number += 1
                    yield number, _cell(cell, f"{path}: row {number}")
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: damaged Parquet file, after row {number}: {str(error).splitlines()[0]}\nGet it again."
            ) from error


def _check_column(path: Path, types: Mapping[str, str], column: str) -> None:
    """InputError for a table without that column, or one of other things; `types` of all its columns, in order."""
    texts = [
        name for name, kind in types.items() if kind.removeprefix("dictionary<values=").split(",")[0] in TEXT_TYPES
    ]
    if column not in texts:
        wrong = f"column '{column}' holds {types[column]}, not text" if column in types else f"no column '{column}'"
        raise InputError(f"{path}: {wrong}{_instead(column, types, texts)}")


def _instead(wanted: str, names: Iterable[str], texts: Sequence[str]) -> str:
    """The end of a message about a field or column that is not there, or holds no text: which there are."""
    shown = [name if len(name) <= 60 else f"{name[:60]}…" for name in sorted(names, key=lambda name: name not in texts)]
    more = f" and {len(shown) - NAMES:,} more" if len(shown) > NAMES else ""
    there = f"; it has {', '.join(shown[:NAMES]) or 'none'}{more}{did_you_mean(wanted, texts)}\n"
    if not texts:
        return f"{there}None of these holds text: write it into one of its own."
    return f"{there}Name the one that holds the text: --column {texts[0] if len(texts) == 1 else 'NAME'}"


def _cell(cell: Any, where: str) -> str:
    """The text of a table's cell, of null an empty one; bytes are checked as a file's are."""
    try:
        value = cell.as_py() or ""
        return (value.decode("utf-8") if isinstance(value, bytes) else value).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 at byte {error.start:,} (0x{error.object[error.start]:02x})\n"
            "Write the table again from text in UTF-8, or name another column."
        ) from error


def of_lines(path: Path, column: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a JSON-lines file, one line in memory at a time."""
    offset, found = 0, False
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            text = decoded(line, path, offset).removeprefix("\ufeff")  # where files were joined
            offset += len(line)
            if text.strip():
                yield number, _field(text, f"{path}:{number}", column, found)
                found = True


def _field(line: str, where: str, column: str, found: bool) -> str:
    """The text of a line, of null an empty one; `found` whether a line before had one."""
    row = parse_line(line, where)
    if not isinstance(row, dict):
        raise InputError(f'{where}: found {type(row).__name__}\nExpected {{"{column}": "…"}} a line.')
    value = row.get(column)
    if column not in row or not isinstance(value, str | None):
        texts = [name for name, other in row.items() if isinstance(other, str) and name != column]
        wrong = f"no field '{column}'" if column not in row else f"field '{column}' holds {_kind(value)}, not text"
        there = _instead(column, row, texts)
        if found:
            there = f"{there.splitlines()[0]}\nThe lines before have it: mend this one, or take it out."
        raise InputError(f"{where}: {wrong}{there}")
    return _text(value or "", where, column)


def _kind(value: Any) -> str:
    """JSON's name of a value's kind."""
    return {bool: "true or false", int: "a number", float: "a number", list: "a list"}.get(type(value), "an object")


def _text(value: str, where: str, column: str) -> str:
    try:
        value.encode("utf-8")  # a hundred times faster than looking at each character
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: field '{column}' holds half of a surrogate pair, which is no character; remove it"
        ) from error
    return value.replace("\r\n", "\n")
