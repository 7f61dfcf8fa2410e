"""An evaluation in the terminal: what was found in plain sentences, and the before/after table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import read_json
from luthier.core.evaluation.report import BITS_COLUMNS, TABLE_COLUMNS, bits_rows, table_rows, verdict

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_evaluation", "show_evaluation"]


def print_evaluation(results: dict[str, Any]) -> None:
    """Print the tables and the sentences of the report to stdout."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 140
    for columns, rows in ((TABLE_COLUMNS, table_rows(results)), (BITS_COLUMNS, bits_rows(results))):
        if rows:
            console.print(_table(columns, rows))
            console.print()
    for line in verdict(results):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Words to the left, numbers to the right; what a row shares with the one above is said once."""
    from rich.table import Table

    table = Table(*columns, box=None, padding=(0, 1), header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
        column.no_wrap = True
    for above, row in zip([("",), *rows], rows, strict=False):
        table.add_row("" if row[0] == above[0] else row[0], *row[1:])
    return table


def show_evaluation(folder: Path) -> None:
    """The human view of an evaluation folder."""
    print(f"{folder}: an evaluation; the page with plots is {folder / 'report.html'}\n")
    print_evaluation(read_json(folder / "results.json"))
