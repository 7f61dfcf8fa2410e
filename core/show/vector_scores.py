"""Scores of vectors in the terminal: a line a set, its sections under it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.core.evaluation.vectors import read_scores
from luthier.core.evaluation.vectors_page import HEAD, score_rows
from luthier.core.evaluation.word_sets import Score

__all__ = ["print_scores", "show_scores"]


def print_scores(scores: Sequence[Score]) -> None:
    """Print the table to stdout; what does not count is dim."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEAD, box=None, padding=(0, 1), header_style="bold", show_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
        column.no_wrap = True
    for score, row in zip(scores, score_rows(scores), strict=True):
        table.add_row(*row, style=None if score.counts else "dim")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    console.print(table)


def show_scores(folder: Path) -> None:
    """The human view of an evaluation of vectors."""
    print(f"{folder}: an evaluation of vectors; the page with a map is {folder / 'report.html'}\n")
    print_scores(read_scores(folder))
