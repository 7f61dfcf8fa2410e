"""PDF files written by hand, so that every letter's place is known: columns, headings, tables, hyphens, empty pages."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from luthier.core.data.readers import ocr
from luthier.core.data.readers.layout import Paragraph, Segment, arrange
from luthier.core.data.readers.read import Extracted, read_document
from luthier.core.errors import DocumentError

Text = tuple[float, float, float, str]  # x, y from below, size, text; negative size: bold


def pdf(*pages: list[Text] | bytes, trailer: str = "", rotate: int = 0) -> bytes:
    """A PDF of A4 pages; a page of bytes is a JPEG filling it."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b""]
    for name in ("Helvetica", "Helvetica-Bold", "Courier"):
        objects.append(f"<</Type/Font/Subtype/Type1/BaseFont/{name}/Encoding/WinAnsiEncoding>>".encode())
    kids = []
    for page in pages:
        resources = "/Font<</R 3 0 R/B 4 0 R/M 5 0 R>>"
        if isinstance(page, bytes):
            content = b"q 595 0 0 842 0 0 cm /I Do Q"
            objects.append(_stream(page, "/Type/XObject/Subtype/Image/Width 1190/Height 1684/ColorSpace/DeviceRGB"
                                         "/BitsPerComponent 8/Filter/DCTDecode"))  # fmt: skip
            resources += f"/XObject<</I {len(objects)} 0 R>>"
        else:
            content = b"".join(_show(*text) for text in page)
        objects.append(_stream(content))
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Rotate {rotate}/Resources<<{resources}>>"
            f"/Contents {len(objects)} 0 R>>".encode()
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(kids)}]>>".encode()
    out, offsets = io.BytesIO(), []
    out.write(b"%PDF-1.7\n")
    for number, item in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%b\nendobj\n" % (number, item))
    start = out.tell()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode())
    out.write(f"trailer<</Size {len(objects) + 1}/Root 1 0 R{trailer}>>\nstartxref\n{start}\n%%EOF".encode())
    return out.getvalue()


def _stream(data: bytes, entries: str = "") -> bytes:
    return f"<<{entries}/Length {len(data)}>>stream\n".encode() + data + b"\nendstream"


def _show(x: float, y: float, size: float, text: str) -> bytes:
    escaped = text.encode("cp1252").replace(b"\\", rb"\\").replace(b"(", rb"\(").replace(b")", rb"\)")
    font = b"B" if size < 0 else b"M" if text.startswith("\t") else b"R"
    return b"BT /%b %g Tf %g %g Td (%b) Tj ET\n" % (font, abs(size), x, y, escaped.lstrip(b"\t"))


def lines(x: float, y: float, *texts: str, size: float = 10) -> list[Text]:
    return [(x, y - 1.2 * n * size, size, text) for n, text in enumerate(texts)]


def read(data: bytes) -> Extracted:
    return read_document(Path("a.pdf"), data)


def kinds(extracted: Extracted) -> list[tuple[str, str]]:
    return [(f"{b.kind}{b.level or ''}", b.text) for b in extracted.blocks]


BODY = [
    "The neck of a guitar carries the strings from the nut to the body of",
    "the instrument, and it is made of maple or of mahogany, with a steel",
    "rod inside that holds against the pull of the strings.",
]


def test_headings_paragraphs_lists_and_pages() -> None:
    first = [
        (72, 770, 20, "Care guide"),
        *lines(72, 730, *BODY),
        *lines(72, 680, *BODY),
        (72, 630, -10, "Humidity"),
        *lines(72, 610, "Keep the room at 45 to 55 percent."),
        (80, 580, 10, "\u2022"),
        (92, 580, 10, "a sponge in the case,"),
        (92, 568, 10, "wet but not dripping"),
        (80, 556, 10, "\u2022"),
        (92, 556, 10, "a measuring device"),
    ]
    found = read(pdf(first, lines(72, 730, "On the second page.")))
    assert [(f"{b.kind}{b.level or ''}", b.text, b.page) for b in found.blocks] == [
        ("heading1", "Care guide", 1),
        ("paragraph", "\n".join(BODY), 1),
        ("paragraph", "\n".join(BODY), 1),
        ("heading2", "Humidity", 1),
        ("paragraph", "Keep the room at 45 to 55 percent.", 1),
        ("list", "- a sponge in the case, wet but not dripping\n- a measuring device", 1),
        ("paragraph", "On the second page.", 2),
    ]
    assert found.notes == []


@pytest.mark.parametrize("order", ["columns", "rows"])
def test_columns_are_read_one_after_the_other_however_the_file_stores_them(order: str) -> None:
    left = [f"left column line {n} runs on and on here" for n in range(12)]
    right = [f"right column line {n} goes on as well so" for n in range(12)]
    texts = [(72, 700, 16, "A title over both of the columns of this page"), *lines(72, 660, *left)]
    texts += lines(310, 660, *right)
    if order == "rows":
        texts.sort(key=lambda t: (-t[1], t[0]))
    found = read(pdf([*texts, (290, 40, 10, "7")]))
    assert kinds(found)[0] == ("heading1", "A title over both of the columns of this page")
    body = [line for b in found.blocks[1:] for line in b.text.split("\n")]
    assert body == [*left, *right, "7"]


def test_a_table_is_read_across() -> None:
    rows = [
        ("Part", "Price", "In stock"),
        ("Nut of bone", "5 EUR", "yes"),
        ("Saddle", "12 EUR", ""),
        ("Tuner", "60", "no"),
    ]
    texts = [
        (x, 700 - 14 * n, 10, c) for n, row in enumerate(rows) for x, c in zip((72, 200, 300), row, strict=True) if c
    ]
    found = read(pdf([*lines(72, 760, *BODY), *texts, (200, 700 - 14 * 2 - 60, 10, "After it.")]))
    assert kinds(found) == [
        ("paragraph", "\n".join(BODY)),
        (
            "table",
            (
                "| Part | Price | In stock |\n| --- | --- | --- |\n| Nut of bone | 5 EUR | yes |\n"
                "| Saddle | 12 EUR |  |\n| Tuner | 60 | no |"
            ),
        ),
        ("paragraph", "After it."),
    ]


def test_code_keeps_its_indents() -> None:
    code = [(72, 700, 10, "\tdef f(x):"), (96, 688, 10, "\treturn x"), (72, 676, 10, "\tf(1)")]
    found = read(pdf([*lines(72, 760, *BODY), *code]))
    assert kinds(found)[1] == ("code", "def f(x):\n    return x\nf(1)")


def test_hyphens_at_line_ends_are_left_for_cleaning() -> None:
    from luthier.core.data.clean import assemble, clean_blocks

    found = read(pdf(lines(72, 700, "A workshop that makes many fine instru-", "ments for players of every kind.")))
    text, _ = assemble(clean_blocks(found.blocks).blocks)
    assert text == "A workshop that makes many fine instruments for players of every kind."


def test_a_page_turned_by_its_property_reads_the_same() -> None:
    page = [(72.0, 770.0, 20.0, "Care guide"), *lines(72, 730, *BODY)]
    assert kinds(read(pdf(page, rotate=90))) == kinds(read(pdf(page)))


def test_no_page_is_empty_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(pdf(lines(72, 700, "There is text here."), []))
    assert found.notes == ["page 2: empty"]
    with pytest.raises(DocumentError, match="page 1: empty") as caught:
        read(pdf([]))
    assert caught.value.rule == "no-text"


def test_an_encrypted_pdf() -> None:
    encrypt = "/Encrypt<</Filter/Unknown/V 4/R 4/O(x)/U(y)/P -4>>/ID[(a)(a)]"
    with pytest.raises(DocumentError) as caught:
        read(pdf(lines(72, 700, "Secret."), trailer=encrypt))
    assert caught.value.rule == "encrypted"


# ---------------------------------------------------------------- recognition: what is made of its lines


def picture() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (1190, 1684), "white").save(out, "JPEG")
    return out.getvalue()


def box(x: float, y: float, text: str, confidence: float = 0.98, slope: float = 0.0) -> tuple:
    """A stripe of text as the network gives it, 14 wide a letter, 30 high."""
    wide = 14 * len(text)
    corners = [(x, y), (x + wide, y + slope * wide), (x + wide, y + 30 + slope * wide), (x, y + 30)]
    return corners, text, confidence


def test_a_scanned_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "_read", lambda _: [box(100, 100, "Scanned words stand"), box(100, 140, "on this page.")])
    found = read(
        pdf(picture(), [*lines(72, 700, "A page of text that has more letters than a stamp or a page number.")])
    )
    assert next((b.kind, b.text, b.page) for b in found.blocks) == ("ocr", "Scanned words stand\non this page.", 1)
    assert found.notes == ["page 1: read by character recognition, since it has no text layer; confidence 98%"]
    assert found.blocks[1].page == 2


def test_low_confidence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "_read", lambda _: [box(100, 100, "iarl krmab stpo", 0.62)])
    for name, data in (("a.pdf", pdf(picture())), ("a.jpg", picture())):
        with pytest.raises(DocumentError, match="62%") as caught:
            read_document(Path(name), data)
        assert (caught.value.rule, caught.value.value) == ("low-confidence", pytest.approx(0.62))
    found = read(pdf(picture(), lines(72, 700, "A page of text that has more letters than a stamp or a page number.")))
    assert found.notes == ["page 1: left out, recognised with a confidence of only 62%"]


def test_a_picture_without_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "_read", lambda _: [])
    with pytest.raises(DocumentError) as caught:
        read_document(Path("a.jpg"), picture())
    assert caught.value.rule == "no-text"


def test_a_sloping_scan_of_columns_is_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    left = [f"left line {n} has several words" for n in range(10)]
    right = [f"right line {n} has several words" for n in range(10)]
    stripes = [box(100, 100 + 40 * n, t, slope=0.05) for n, t in enumerate(left)]
    stripes += [box(600, 100 + 40 * n + 0.05 * 500, t, slope=0.05) for n, t in enumerate(right)]
    monkeypatch.setattr(ocr, "_read", lambda _: sorted(stripes, key=lambda s: s[0][0][1]))
    found = ocr.recognise(np.zeros((600, 1200, 3), np.uint8))
    assert "\n".join(p.text for p in found.paragraphs).split("\n") == [*left, *right]


def test_a_page_on_its_side_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def stripes(image: np.ndarray) -> list:
        marked = np.argwhere(image[..., 0] == 255)[0]
        turned = {(0, 0): 0, (0, image.shape[1] - 1): 3, (image.shape[0] - 1, 0): 1}.get(tuple(marked), 2)
        if turned == 0:
            return [box(10, 10, "Now it reads well")]
        corners, text, _ = box(10, 10, "xywz vut")
        tall = [(10, 10), (40, 10), (40, 10 + 14 * len(text)), (10, 10 + 14 * len(text))]
        return [(tall if turned % 2 else corners, text, 0.5)]

    monkeypatch.setattr(ocr, "_read", stripes)
    page = np.zeros((300, 400, 3), np.uint8)
    page[0, 0] = 255
    for quarters in range(4):
        found = ocr.recognise(np.rot90(page, quarters))
        assert [p.text for p in found.paragraphs] == ["Now it reads well"], quarters


# ---------------------------------------------------------------- layout alone


def test_right_to_left_columns() -> None:
    def column(x: float, letter: str) -> list[Segment]:
        return [
            Segment(f"{letter * 6} {letter * 7} {letter * 5} {n}", x, 20 * n, x + 200, 20 * n + 12, 12)
            for n in range(8)
        ]

    text = "\n".join(p.text for p in arrange([*column(0, "ب"), *column(240, "ا")], 400))
    assert text.index("ا") < text.index("ب")


def test_a_paragraph_goes_on_in_the_next_column() -> None:
    words = "several words of running text in a line"
    left = [Segment(words, 0, 15 * n, 200, 15 * n + 12, 12) for n in range(6)]
    right = [Segment(words, 220, 15 * n, 420, 15 * n + 12, 12) for n in range(6)]
    assert arrange([*left, *right], 500) == [Paragraph("\n".join([words] * 12), "paragraph", 12, False)]


def test_nothing_is_lost_and_nothing_twice() -> None:
    from hypothesis import given, settings
    from hypothesis import strategies as st

    places = st.tuples(st.integers(0, 500), st.integers(0, 700), st.integers(5, 200), st.sampled_from([8, 10, 20]))

    @settings(max_examples=80)
    @given(st.lists(places, max_size=40))
    def check(boxes: list[tuple[int, int, int, int]]) -> None:
        segments = [
            Segment(f"w{n}x a b c", x, y, x + wide, y + size, size) for n, (x, y, wide, size) in enumerate(boxes)
        ]
        found = re.findall(r"w\d+x", " ".join(p.text for p in arrange(segments, 800)))
        assert sorted(found) == sorted(f"w{n}x" for n in range(len(boxes)))

    check()
