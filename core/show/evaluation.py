"""An evaluation in the terminal: what was found in plain sentences, and the before/after table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.artifacts import read_json
from luthier.core.evaluation.report import table_rows, verdict

__all__ = ["print_evaluation", "show_evaluation"]

COLUMNS = ("questions", "system", "n", "exact match", "F1", "right fact", "'not found'")


def print_evaluation(results: dict[str, Any]) -> None:
    """Print the before/after table and the sentences of the report to stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS, box=None, padding=(0, 1), header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
        column.no_wrap = True
    previous = ""
    for row in table_rows(results):
        table.add_row("" if row[0] == previous else row[0], *row[1:])
        previous = row[0]
    console = Console()
    if not console.is_terminal:
        console.width = 140
    console.print(table)
    console.print()
    for line in verdict(results):
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def show_evaluation(folder: Path) -> None:
    """The human view of an evaluation folder."""
    print(f"{folder}: an evaluation; the page with plots is {folder / 'report.html'}\n")
    print_evaluation(read_json(folder / "results.json"))
