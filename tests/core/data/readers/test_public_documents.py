"""Real documents in $LUTHIER_TEST_DATA/docs, made by many programs, against the expected text that lies beside them.

The expected texts are other tools' output (docling's, markitdown's) or true transcripts (`t_*.txt`). Recall and
precision count words as multisets, in lower case, Markdown's marks left out. Where the other tool is wrong, leaves
parts out (comments, headers) or repeats them (merged cells), 1 cannot be reached; such files are named with the reason.
"""

from __future__ import annotations

import os
import re
import statistics
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from luthier.core.data.readers.read import Extracted, read_document
from luthier.core.errors import DocumentError

DATA = os.environ.get("LUTHIER_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
DOCS = Path(DATA or ".") / "docs"
ODD = {
    "docx_comments.docx": "the expected text has no comments",
    "docx_page_header_footer_first_page.docx": "the expected text has no headers and footers",
    "unit_test_formatting.docx": "the expected text has no headers and footers",
    "docx_checkboxes.docx": "boxes are [x] there, ☒ here",
    "equations.docx": "formulas are LaTeX words there",
    "table_with_equations.docx": "formulas are LaTeX words there",
    "formatting.html": "H2O is three words there",
    "wiki_duck.html": "the expected text has the navigation",
    "html_rich_table_cells.html": "H2O is three words there; captions are left out",
    "powerpoint_comments.pptx": "times of comments are words there",
    "powerpoint_sample.pptx": "merged cells are repeated there, notes left out",
    "pptx_chart.pptx": "one chart is left out there",
    "xlsx_01.xlsx": "a hidden sheet and numbers of charts are there",
    "xlsx_03_chartsheet.xlsx": "the chart repeats the cells there",
    "xlsx_07_gap_tolerance_.xlsx": "merged cells are repeated there",
    "xlsx_comments.xlsx": "times of comments are words there",
}


def read(name: str) -> Extracted:
    return read_document(DOCS / name)


def words(text: str) -> Counter[str]:
    text = re.sub(r"<!--.*?-->|\]\([^)]*\)|&[a-z]+;", " ", unicodedata.normalize("NFKC", text).lower())
    return Counter(re.findall(r"\w+", re.sub(r"[*_`#|\\]", " ", text)))


def agreement(file: Path) -> tuple[float, float]:
    """(recall, precision) of a file's words, after cleaning has mended its hyphens."""
    from luthier.core.data.clean import dehyphenate

    beside = [file.with_name(file.name + ".md"), file.with_suffix(".md"), file.with_suffix(".txt")]
    expected = words(next(f for f in beside if f.is_file()).read_text(encoding="utf-8"))
    text = "\n\n".join(b.text for b in read_document(file).blocks)
    found = words(dehyphenate(text, set())[0])
    shared = sum((expected & found).values())
    return shared / expected.total(), shared / found.total()


@pytest.mark.parametrize(
    ("folder", "suffix", "recall", "precision"),
    [
        ("docx", ".docx", 0.95, 0.97),
        ("pptx", ".pptx", 0.98, 0.98),
        ("xlsx", ".xlsx", 0.98, 0.98),
        ("html", ".html", 0.97, 0.91),
        ("other", ".odt", 0.98, 0.99),
        ("other", ".epub", 0.99, 0.99),
        ("pdf", ".pdf", 0.91, 0.85),
    ],
)
def test_words_of_each_format(folder: str, suffix: str, recall: float, precision: float) -> None:
    scanned = ("ocr_test_scanned.pdf", "scanned_multipage.pdf")
    files = [f for f in sorted((DOCS / folder).glob(f"*{suffix}")) if f.name not in (*ODD, *scanned)]
    files = [f for f in files if any(p.is_file() for p in (f.with_name(f.name + ".md"), f.with_suffix(".md")))]
    results = {f.name: agreement(f) for f in files}
    assert results
    assert {name: r for name, r in results.items() if r[0] < recall or r[1] < precision} == {}
    assert statistics.median(r for r, _ in results.values()) >= 0.97
    assert statistics.median(p for _, p in results.values()) >= 0.97


def test_every_file_is_read_or_refused_with_a_reason() -> None:
    """All but those that need recognition, which is slow, and one of 872 pages."""
    slow = ("ocr_test_scanned", "scanned_multipage", "imagemagick", "u_pdf-with-ocr-text", "872p", "10k", "u_winter")
    refused = {}
    for folder in ("docx", "pptx", "xlsx", "html", "pdf", "email", "other"):
        for file in sorted((DOCS / folder).iterdir()):
            if file.suffix == ".md" or any(part in file.name for part in slow):
                continue
            try:
                found = read_document(file)
            except DocumentError as error:
                refused[file.name] = error.rule
            else:
                assert any(b.text.strip() for b in found.blocks), file
                assert all(b.level for b in found.blocks if b.kind == "heading"), file
    assert refused == {
        "d_doc-default.docx": "no-text",
        "d_tbl-having-tables.docx": "no-text",
        "p_simple2.pdf": "no-text",
        "s_libreoffice-writer-password.pdf": "encrypted",
        "legacy_sample.doc": "unknown-format",
        "m_test.xls": "unknown-format",
    }


def test_columns_stay_columns() -> None:
    text = "\n".join(b.text for b in read("pdf/s_multicolumn.pdf").blocks if b.page == 1)
    assert text.index("Abstract") < text.index("Lorem ipsum dolor sit amet, consectetuer adip-\niscing elit.")
    spread = [b.text for b in read("pdf/table_mislabeled_as_picture.pdf").blocks]
    assert any(t.startswith("26.") for t in spread)
    assert next(n for n, t in enumerate(spread) if t.startswith("25.")) < next(
        n for n, t in enumerate(spread) if t.startswith("26.")
    )


def test_arabic_ligatures_come_in_the_order_they_are_spoken() -> None:
    text = " ".join(b.text for b in read("pdf/right_to_left_01.pdf").blocks)
    assert "الإنتاجية" in text
    assert "المشكلات من خلال" in text
    assert "Python من" in text


def test_a_pdf_table_cell_by_cell() -> None:
    table = next(b.text for b in read("pdf/m_SPARSE-2024-INV-1234_borderless_table.pdf").blocks if b.kind == "table")
    lines = table.split("\n")
    assert lines[0] == "| Product Code | Location | Expected | Actual | Variance | Status |"
    assert "| SKU-9201 |  | 780 | 778 |  | OK |" in lines


def test_excel_cell_by_cell() -> None:
    tables = [b.text for b in read("xlsx/xlsx_05_table_with_title.xlsx").blocks if b.kind == "table"]
    rows = [
        "Year | Freshwater Ducks",
        "--- | ---",
        "2019 | 120",
        "2020 | 135",
        "2021 | 150",
        "2022 | 170",
        "2023 | 160",
    ]
    assert tables == ["\n".join(f"| {row} |" for row in [*rows, "2024 | 180"])]


def test_comments_of_all_three_office_formats() -> None:
    def comments(name: str) -> list[str]:
        return [b.text for b in read(name).blocks if b.kind == "comment"]

    assert "John Reviewer: This is a sample reviewer comment on the first paragraph." in comments(
        "docx/docx_comments.docx"
    )
    assert "Jane Smith: This is a sample response" in comments("pptx/powerpoint_comments.pptx")
    assert "B2 Jane Editor: Which libraries are you referring to?" in comments("xlsx/xlsx_comments.xlsx")


def test_outlook_and_utf16_mails() -> None:
    message = read("email/msg_with_attachment.msg")
    assert [name for name, _ in message.attachments] == ["test.txt", "report.pdf"]
    assert message.attachments[1][1].startswith(b"%PDF")
    assert "Roses are red" in read("email/u_fake-email-utf-16.eml").blocks[-1].text
    assert read("email/u_mime-word-encoded-subject.eml").title == "Simple email with ☸☿ Unicode subject"
