"""Tables: one text form for all formats, and CSV files.

    | Service | Price |        Markdown's pipe table, because people, models and the rules of question-making read it
    | --- | --- |            cells are one line each, `|` in a cell is written `\\|`
    | Setup | 60 EUR |         rows are as long as the longest; empty rows and columns are left out

A CSV file does not say what parts its cells. Each of `,` `;` tab `|` is tried with the csv module; the one wins
whose rows agree best on a number of cells: share of rows that have the commonest length, longer rows first.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from luthier.core.data.readers.plain import decode, paragraphs
from luthier.core.data.readers.read import Block, Extracted

__all__ = ["flat", "read_csv", "table_text"]

DELIMITERS = ",;\t|"


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """A pipe table of `rows`, the first being its header; an empty string if all cells are empty."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    width = max((len(row) for row in cells), default=0)
    cells = [row + [""] * (width - len(row)) for row in cells if any(row)]
    used = [n for n in range(width) if any(row[n] for row in cells)]
    lines = ["| " + " | ".join(row[n] for n in used) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(used), *lines[1:]]) if lines else ""


def flat(block: Block) -> str:
    """A block's text for a place that is one line; a table as `a, b; c, d`."""
    if block.kind != "table":
        return block.text
    lines = [line.strip("|").split(" | ") for line in block.text.split("\n") if not re.fullmatch(r"[| -]+", line)]
    return "; ".join(", ".join(cell.strip() for cell in line if cell.strip()) for line in lines)


def read_csv(file: Path, data: bytes) -> Extracted:
    """A table from delimited text; lines before a table (titles, `sep=;`) become paragraphs."""
    text = decode(data)
    first, _, rest = text.partition("\n")
    delimiter = ""
    if first.strip().lower().startswith("sep=") and len(first.strip()) <= 5:
        delimiter, text = first.strip()[4:] or "\t", rest
    rows = _rows(text, delimiter or _delimiter(text))
    width = Counter(len(row) for row in rows).most_common(1)[0][0] if rows else 0
    if width < 2:
        return Extracted(paragraphs(text), "text/csv")
    start = next(n for n, row in enumerate(rows) if len(row) >= max(2, width - 1))
    blocks = [Block(" ".join(cell for cell in row if cell)) for row in rows[:start]]
    return Extracted([*blocks, Block(table_text(rows[start:]), "table")], "text/csv")


def _rows(text: str, delimiter: str) -> list[list[str]]:
    csv.field_size_limit(1 << 24)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in reader if any(cell.strip() for cell in row)]


def _delimiter(text: str) -> str:
    sample = text[:50_000]
    return max(DELIMITERS, key=lambda delimiter: _agreement(sample, delimiter))


def _agreement(sample: str, delimiter: str) -> tuple[float, int]:
    """(share of rows of the commonest length, that length); nothing for a delimiter that parts nothing."""
    try:
        lengths = Counter(len(row) for row in _rows(sample, delimiter))
    except csv.Error:
        return 0.0, 0
    if not lengths:
        return 0.0, 0
    length, count = max(lengths.items(), key=lambda item: (item[1], item[0]))
    return (count / lengths.total(), length) if length > 1 else (0.0, 0)
