"""The page of an evaluation: its sentences follow the numbers, its columns hold what their headers say."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from luthier.core.evaluation import report
from luthier.core.evaluation.metrics import wilson
from luthier.core.evaluation.report import draw_map, draw_rates, verdict, write_report
from luthier.core.evaluation.samples import Sample
from luthier.core.show.evaluation import print_evaluation


def rate(right: int, of: int) -> dict[str, Any]:
    e = wilson([1.0] * right + [0.0] * (of - right))
    return {"value": e.value, "low": e.low, "high": e.high, "n": e.n}


def row(system: str, right: int, of: int = 100, name: str = "trained") -> dict[str, Any]:
    e = rate(right, of)
    return {"set": name, "system": system, "n": of, "exact_match": e, "f1": e, "fact": e, "not_found": rate(0, of)}


def results(before: int | None, tuned: int, of: int = 100) -> dict[str, Any]:
    table = ([] if before is None else [row("before", before, of)]) + [row("tuned", tuned, of)]
    bits = {"documents": 1, **{r["system"]: {"value": 2.5, "low": 2.25, "high": 2.75, "bytes": 8636} for r in table}}
    return {"models": {r["system"]: "m" for r in table}, "bits_per_byte": bits, "table": table}


@pytest.mark.parametrize(
    ("before", "tuned", "of", "says"),
    [
        (0, 90, 100, "This shows that training works"),
        (None, 90, 100, "This shows that training works"),
        (0, 0, 100, "Nothing was memorised"),
        (None, 0, 100, "Nothing was memorised"),
        (60, 60, 100, "Tuning added nothing"),
        (60, 40, 100, "Tuning added nothing"),
        (1, 2, 4, "The intervals overlap"),
    ],
)
def test_the_sentence_on_memorisation_follows_the_number(before: int | None, tuned: int, of: int, says: str) -> None:
    line = verdict(results(before, tuned, of))[0]
    assert says in line
    assert ("training works" in line) == (tuned == 90)


class Tables(HTMLParser):
    """Every table as rows of (text, class)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list[list[list[str]]]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.found.append([])
        elif tag == "tr":
            self.found[-1].append([])
        elif tag in ("th", "td"):
            self.inside = True
            self.found[-1][-1].append(["", dict(attrs).get("class") or ""])

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1][-1][-1][0] += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    sample = Sample("trained", "tuned", "Top?", "Spruce.", "Spruce.", "model", "", 1.0, 1.0, 1.0, None, 0.0, 0.0)
    write_report(tmp_path / "report.html", results(0, 90), [sample], models=[tmp_path])
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_headers_stand_over_their_columns(page: str) -> None:
    for head, *body in Tables(page).found[:2]:
        assert [kind for _, kind in head] == ["", "", *["number"] * (len(head) - 2)]
        assert all([kind for _, kind in cells] == [kind for _, kind in head] for cells in body)


def test_bits_per_byte_have_columns_of_their_own(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, bits = Tables(page).found[:2]
    assert [text for text, _ in main[0]][2:5] == ["n", "exact match", "F1"]
    assert [cells[0][0] for cells in main[1:]] == ["trained questions (memorisation)"] * 2
    cells = dict(zip([text for text, _ in bits[0]], [text for text, _ in bits[2]], strict=True))
    assert (cells["system"], cells["bytes"]) == ("tuned", "8,636")
    assert (cells["bits per byte"], cells["95%"]) == ("2.500", "[2.250, 2.750]")
    print_evaluation(results(0, 90))
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "bits per byte" in line)
    tuned = next(line for line in lines[lines.index(head) :] if "tuned" in line)
    for name, value in (("bytes", "8,636"), ("bits per byte", "2.500"), ("95%", "[2.250, 2.750]")):
        assert head.index(name) + len(name) == tuned.index(value) + len(value)


def test_a_share_ends_at_one() -> None:
    svg = draw_rates(results(0, 90))
    assert ">1.0<" in svg and ">1.2<" not in svg


def test_a_point_without_name_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    places = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    monkeypatch.setattr("luthier.core.show.vectors.map_2d", lambda *_: (places, ["maple", "spruce", "ebony"]))
    svg = draw_map(None) or ""  # pyright: ignore[reportArgumentType]
    assert "maple" in svg and "ebony" in svg and "spruce" not in svg
    assert "where names would overlap, the rarer one's point has none" in report.MAP_CAPTION
