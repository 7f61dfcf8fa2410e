"""The page of an evaluation of vectors: the table of scores and a map of the commonest words, in one file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.evaluation.report import MAP_CAPTION, PAGE, draw_map, html_table

if TYPE_CHECKING:
    from luthier.core.evaluation.word_sets import Score
    from luthier.models.vectors import Vectors

__all__ = ["HEAD", "score_rows", "vectors_page"]

HEAD = ("set", "measure", "score", "95%", "asked", "coverage")


def score_rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """The cells of the table, a row a score; a set of low coverage is marked."""
    rows = []
    for s in scores:
        name = f"  {s.section}" if s.section else s.set
        interval = f"{100 * s.low:.1f} to {100 * s.high:.1f}" if s.used else ""
        mark = "" if s.counts else ", not counted"
        rows.append(
            (name, s.kind, f"{100 * s.value:.1f}", interval, f"{s.used:,} of {s.all:,}", f"{s.coverage:.0%}{mark}")
        )
    return rows


def vectors_page(name: str, vectors: Vectors, scores: Sequence[Score], most: int) -> tuple[str, str]:
    """(the map as an SVG document, the page as HTML)."""
    svg = draw_map(vectors, most) or '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>\n'
    style = PAGE.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    lead = html.escape(f"{name}: {len(vectors):,} vectors of {vectors.dim} numbers")
    return svg, (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Vectors</title>\n<style>{style}'
        f'</style>\n</head>\n<body>\n<main>\n<h1>What these vectors know</h1>\n<p class="lead">{lead}</p>\n'
        f"{html_table(HEAD, score_rows(scores))}"
        '<p class="note">Similarity is Spearman’s rank correlation, analogies the share answered right, categories the '
        "purity of clusters; all times 100. A set of which under 70% could be asked is not counted.</p>\n"
        f"<h2>Map</h2><figure>{svg}<figcaption>The commonest words {MAP_CAPTION}"
        "</figcaption></figure>\n</main>\n</body>\n</html>\n"
    )
