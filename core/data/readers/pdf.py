"""PDF: characters at places on pages, put back into lines, paragraphs and headings; scanned pages go to recognition.

A PDF holds no text in our sense, only instructions to draw glyphs. PDFium tells each character and its box; from there
`layout` finds the reading order. Then we ask whether the text can be believed:

    no characters, or hardly any on a page that is one picture     → optical character recognition (OCR)
    characters that are mostly unknown to Unicode                  → OCR
    invisible text over a picture (a scanner's own recognition)    → OCR, ours being the better; theirs if ours fails

A heading is what is set larger than the body text, or bold on lines of its own; its level is the rank of its size.
"""

from __future__ import annotations

import ctypes
import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.data.readers.layout import Paragraph, Segment, arrange, is_rtl
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.errors import DocumentError

if TYPE_CHECKING:
    import pypdfium2

__all__ = ["headed_blocks", "read_pdf"]

DPI = 200
FEW = 60  # characters: fewer on a page that is one picture are a stamp or a page number
ALEFS = "اأإآٱ"
BOLD = re.compile(r"(?i)bold|black|heavy|semibold|demi|cmbx")
MONO = re.compile(r"(?i)courier|mono|consol|typewriter|cmtt|menlo|lettergothic")


def read_pdf(file: Path, data: bytes) -> Extracted:
    document = _open(file, data)
    out = Extracted([], "application/pdf", _title(document))
    pages: list[list[Paragraph]] = []
    scores: list[tuple[float, int]] = []
    for number in range(len(document)):
        try:
            page = document[number]
        except Exception:  # pypdfium2 has one error for all
            out.notes.append(f"page {number + 1}: damaged, left out")
            pages.append([])
            continue
        pages.append(_page(page, number + 1, out.notes, scores))
        pages[-1] += _annotations(document, page)
        page.close()
    out.blocks = headed_blocks(pages)
    if not out.blocks and scores:
        from luthier.core.data.readers.ocr import LEAST_CONFIDENCE

        best = max(score for score, _ in scores)
        message = f"{file}: recognised with a confidence of {best:.0%}, below {LEAST_CONFIDENCE:.0%}"
        raise DocumentError("low-confidence", f"{message}\nScan it again, larger or sharper.", round(best, 4))
    return out


def _open(file: Path, data: bytes) -> pypdfium2.PdfDocument:
    import pypdfium2
    import pypdfium2.raw as raw

    try:
        document = pypdfium2.PdfDocument(data)
        len(document)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise DocumentError("encrypted", f"{file}: protected by a password\nSave a copy without it.") from error
        raise DocumentError("unreadable", f"{file}: a damaged PDF: {error}") from error
    if len(document) == 0:
        raise DocumentError("no-text", f"{file}: a PDF without pages")
    return document


def _title(document: pypdfium2.PdfDocument) -> str:
    """The title in the properties, unless a program made it up."""
    title = " ".join(document.get_metadata_value("Title").split())
    made_up = re.search(
        r"(?i)^\(?(untitled|anonymous|microsoft|document\d*|print|scan|title)\b|\.(docx?|pdf|indd|tex|xlsx?|pptx?)$",
        title,
    )
    return "" if made_up or len(title) < 4 else title


# ---------------------------------------------------------------- one page


def _page(page: pypdfium2.PdfPage, number: int, notes: list[str], scores: list[tuple[float, int]]) -> list[Paragraph]:
    """The paragraphs of a page, by its text layer or by recognition."""
    text = page.get_textpage()
    characters = _characters(text)
    letters = sum(not c[0].isspace() for c in characters)
    picture = _picture_share(page)
    if letters and _garbled([c[0] for c in characters]):
        why = "its characters are unknown to Unicode"
    elif letters < FEW and (picture > 0.3 or not letters):
        why = "it has no text layer" if not letters else "it is one picture"
    elif picture > 0.5 and _invisible(page) > 0.8:
        why = "its text layer is a scanner's"
    else:
        return _from_characters(characters, text, page.get_height())
    layer = [] if why.startswith("its characters") else _from_characters(characters, text, page.get_height())
    return _recognised(page, number, why, layer, notes, scores)


def _recognised(
    page: pypdfium2.PdfPage,
    number: int,
    why: str,
    layer: list[Paragraph],
    notes: list[str],
    scores: list[tuple[float, int]],
) -> list[Paragraph]:
    from luthier.core.data.readers.ocr import LEAST_CONFIDENCE, recognise

    if not _draws(page):
        notes.append(f"page {number}: {'nothing but lines' if _objects(page) else 'empty'}")
        return layer
    image = page.render(scale=DPI / 72).to_numpy()  # type: ignore[arg-type]
    found = recognise(image)
    words, known = (len(" ".join(p.text for p in part).split()) for part in (found.paragraphs, layer))
    if found.paragraphs and found.confidence < LEAST_CONFIDENCE:
        scores.append((found.confidence, number))
        notes.append(f"page {number}: left out, recognised with a confidence of only {found.confidence:.0%}")
        return layer
    if words == 0 or words < 0.5 * known:
        notes.append(f"page {number}: no text layer and no text recognised" if not layer else f"page {number}: {why}")
        return layer
    notes.append(f"page {number}: read by character recognition, since {why}; confidence {found.confidence:.0%}")
    return found.paragraphs


def _characters(text: Any) -> list[tuple[str, float, float, float, float, int]]:
    """(character, left, top, right, bottom, index) of a page, y up as in the file."""
    import pypdfium2.raw as raw

    box = raw.FS_RECTF()
    out: list[tuple[str, float, float, float, float, int]] = []
    high = 0
    for index in range(text.count_chars()):
        code = raw.FPDFText_GetUnicode(text, index)
        if 0xD800 <= code < 0xDC00:  # half of a character beyond 16 bits
            high = code
            continue
        if 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00) if high else 0xFFFD
        character = "\ufffe" if code in (2, 0xFFFE) else chr(code) if code else "\ufffd"
        if (
            0x91 <= code <= 0x97
        ):  # quotation marks and dashes: a code of Windows' table, taken for Unicode by the file's maker
            character = bytes([code]).decode("cp1252", "replace")
        raw.FPDFText_GetLooseCharBox(text, index, ctypes.byref(box))
        out.append((character, box.left, box.top, box.right, box.bottom, index))
    return out


def _garbled(characters: Sequence[str]) -> bool:
    """Whether more than a fifth of the visible characters stand for nothing."""
    visible = [c for c in characters if not c.isspace() and c != "\ufffe"]
    odd = sum(c == "\ufffd" or "\ue000" <= c <= "\uf8ff" or c < " " or "\x7f" <= c <= "\x9f" for c in visible)
    return odd > 0.2 * len(visible)


def _picture_share(page: pypdfium2.PdfPage) -> float:
    """The share of the page that its largest picture covers."""
    import pypdfium2
    import pypdfium2.raw as raw

    width, height = page.get_size()
    largest = 0.0
    for thing in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE], max_depth=3):
        try:
            left, bottom, right, top = thing.get_bounds()
        except pypdfium2.PdfiumError:  # a picture without a place covers nothing
            continue
        largest = max(largest, abs(right - left) * abs(top - bottom))
    return largest / max(1.0, width * height)


def _invisible(page: pypdfium2.PdfPage) -> float:
    """The share of the text objects that are drawn without ink."""
    import pypdfium2.raw as raw

    modes = [
        raw.FPDFTextObj_GetTextRenderMode(o) for o in page.get_objects(filter=[raw.FPDF_PAGEOBJ_TEXT], max_depth=3)
    ]
    return sum(mode == raw.FPDF_TEXTRENDERMODE_INVISIBLE for mode in modes) / len(modes) if modes else 0.0


def _draws(page: pypdfium2.PdfPage) -> bool:
    """Whether there may be text to see: a picture, or enough outlines to be letters."""
    import pypdfium2.raw as raw

    kinds = [raw.FPDFPageObj_GetType(thing) for thing in page.get_objects(max_depth=3)]
    return any(kind != raw.FPDF_PAGEOBJ_PATH for kind in kinds) or len(kinds) >= 10


def _objects(page: pypdfium2.PdfPage) -> bool:
    return next(iter(page.get_objects(max_depth=2)), None) is not None


# ---------------------------------------------------------------- characters to segments


def _from_characters(characters: list, text: Any, height: float) -> list[Paragraph]:
    import pypdfium2.raw as raw

    lines = _segments(characters)
    angles = Counter(round(math.degrees(raw.FPDFText_GetCharAngle(text, line[0][5])) / 90) % 4 for line in lines)
    upright = max(angles, key=lambda a: sum(len(line) for line in lines if _turn(line, text) == a)) if angles else 0
    segments, aside = [], []
    for line in lines:
        turn = _turn(line, text)
        (segments if turn == upright else aside).append(_segment(line, text, upright if turn == upright else turn))
    tall = sum(s.y1 - s.y0 > 2.5 * (s.x1 - s.x0) and len(s.text.strip()) > 3 for s in segments)
    if tall > 0.5 * len(segments):  # lines from top to bottom, the first at the right
        columns = sorted(segments, key=lambda s: (-round(s.x0), s.y0))
        return [Paragraph("\n".join(s.text.strip() for s in columns), "paragraph", segments[0].x1 - segments[0].x0)]
    bottom = max((s.y1 for s in segments), default=0.0)
    top = min((s.y0 for s in segments), default=0.0)
    shift = -top + max(0.0, (height - (bottom - top)) / 2)
    segments = [Segment(s.text, s.x0, s.y0 + shift, s.x1, s.y1 + shift, s.size, s.bold, s.mono) for s in segments]
    paragraphs = arrange(segments, height)
    side = " ".join(s.text.strip() for s in aside if s.text.strip())
    return paragraphs + ([Paragraph(side, "note", 0.0)] if side else [])


def _turn(line: list, text: Any) -> int:
    """By how many quarter turns a line is turned."""
    import pypdfium2.raw as raw

    index = next((c[5] for c in line if not c[0].isspace()), line[0][5])
    return round(math.degrees(raw.FPDFText_GetCharAngle(text, index)) / 90) % 4


def _segments(characters: list) -> list[list]:
    """Characters parted at line ends, at changes of height, and at gaps wider than their size."""
    out: list[list] = []
    current: list = []
    for character in characters:
        if character[0] in "\r\n":
            out.append(current)
            current = []
            continue
        last = next((c for c in reversed(current) if not c[0].isspace()), None)
        if last is not None and not character[0].isspace() and _apart(last, character):
            out.append(current)
            current = []
        current.append(character)
        if character[0] == "\ufffe":
            out.append(current)
            current = []
    out.append(current)
    return [line for line in out if any(not c[0].isspace() for c in line)]


def _apart(a: tuple, b: tuple) -> bool:
    tall = max(abs(a[2] - a[4]), abs(b[2] - b[4]), 1.0)
    wide = max(abs(a[3] - a[1]), abs(b[3] - b[1]))
    size = max(tall, wide)
    across = max(b[1] - a[3], a[1] - b[3])
    along = max(b[4] - a[2], a[4] - b[2])
    return across > 0.6 * min(size, tall if tall > 0.4 * wide else wide) or along > 0.3 * size


def _segment(line: list, text: Any, turn: int) -> Segment:
    import pypdfium2.raw as raw

    visible = [c for c in line if not c[0].isspace() and c[0] != "\ufffe"] or line
    x0, x1 = min(c[1] for c in visible), max(c[3] for c in visible)
    low, high = min(c[4] for c in visible), max(c[2] for c in visible)
    # quarter turns of the axes so that the text runs to the right; y down
    x0, y0, x1, y1 = {
        0: (x0, -high, x1, -low),
        1: (low, x0, high, x1),
        2: (-x1, low, -x0, high),
        3: (-high, -x1, -low, -x0),
    }[turn]
    heights = [abs(c[2] - c[4]) if turn % 2 == 0 else abs(c[3] - c[1]) for c in visible]
    size = statistics.median(heights) or 1.0
    name = ctypes.create_string_buffer(128)
    index = visible[len(visible) // 2][5]
    raw.FPDFText_GetFontInfo(text, index, name, 128, ctypes.byref(ctypes.c_int()))
    font = name.value.decode("utf-8", "replace")
    bold = bool(BOLD.search(font)) or raw.FPDFText_GetFontWeight(text, index) >= 600
    return Segment(_string(line), x0, y0, x1, y1, size, bold, bool(MONO.search(font)))


def _string(line: list) -> str:
    """The characters as text: PDFium's mark of a hyphen at a line's end becomes one, lam-alef pairs are put right."""
    out = [c[0] for c in line]
    for n in range(len(out) - 1):  # the two letters of one glyph come in the order of the page
        if out[n] in ALEFS and out[n + 1] == "ل" and line[n][1:5] == line[n + 1][1:5]:
            out[n], out[n + 1] = out[n + 1], out[n]
    return "".join(out).replace("\ufffe", "-").replace("\ufffd", "").replace("\x00", "")


# ---------------------------------------------------------------- beside the text


def _annotations(document: pypdfium2.PdfDocument, page: pypdfium2.PdfPage) -> list[Paragraph]:
    """Comments, and the filled-in fields of forms as `name: value`."""
    import pypdfium2.raw as raw

    comments, fields = [], []
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        kind = raw.FPDFAnnot_GetSubtype(annotation)
        if kind == raw.FPDF_ANNOT_WIDGET:
            name, value = _value(annotation, b"T"), _value(annotation, b"V")
            if value and value != "Off":
                fields.append(f"{name}: {value}" if name else value)
        elif kind in (raw.FPDF_ANNOT_TEXT, raw.FPDF_ANNOT_FREETEXT, raw.FPDF_ANNOT_HIGHLIGHT):
            comments.append(_value(annotation, b"Contents"))
        raw.FPDFPage_CloseAnnot(annotation)
    out = [Paragraph("\n".join(f"- {f}" for f in fields), "list", 0.0)] if fields else []
    return out + [Paragraph(comment, "comment", 0.0) for comment in comments if comment]


def _value(annotation: Any, key: bytes) -> str:
    import pypdfium2.raw as raw

    size = raw.FPDFAnnot_GetStringValue(annotation, key, None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    raw.FPDFAnnot_GetStringValue(annotation, key, ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), size)
    return " ".join(buffer.raw[: size - 2].decode("utf-16-le", "replace").split())


# ---------------------------------------------------------------- headings


def headed_blocks(pages: Sequence[Sequence[Paragraph]]) -> list[Block]:
    """Blocks of the pages' paragraphs, the large and the bold ones as headings."""
    everything = [p for page in pages for p in page]
    if sum(len(p.text) for p in everything if p.kind == "code") > 0.5 * sum(len(p.text) for p in everything):
        for p in everything:  # a typewriter's page, not a program
            p.kind = "paragraph" if p.kind == "code" else p.kind
    weights: Counter[float] = Counter()
    for p in everything:
        if p.kind in ("paragraph", "list", "ocr"):
            weights[round(p.size * 2) / 2] += len(p.text)
    body = weights.most_common(1)[0][0] if weights else 10.0
    bold = sum(len(p.text) for p in everything if p.bold) > 0.4 * sum(len(p.text) for p in everything)
    heads = {id(p) for p in everything if _is_heading(p, body, bold)}
    sizes = sorted({round(p.size * 2) / 2 for p in everything if id(p) in heads}, reverse=True)
    merged: list[float] = []
    for size in sizes:  # sizes that differ by less than a twentieth are one
        if not merged or size < 0.95 * merged[-1]:
            merged.append(size)
    blocks = []
    for number, page in enumerate(pages, 1):
        for p in page:
            if id(p) in heads:
                level = 1 + sum(size > 1.03 * p.size for size in merged)
                blocks.append(Block(" ".join(p.text.split()), "heading", number, min(6, level)))
            else:
                blocks.append(Block(p.text, p.kind, number))
    return blocks


def _is_heading(p: Paragraph, body: float, mostly_bold: bool) -> bool:
    words = p.text.split()
    if p.kind not in ("paragraph", "ocr") or not 1 <= len(words) <= 25 or p.text.count("\n") > 2:
        return False
    if not re.search(r"[^\W\d_]{2}", p.text) or (p.text.rstrip().endswith((".", ",", ";")) and len(words) > 4):
        return False
    if is_rtl(p.text) and len(words) > 15:
        return False
    larger = p.size >= (1.15 if p.kind == "paragraph" else 1.4) * body
    return larger or (p.bold and not mostly_bold and p.size >= 0.95 * body and not p.text.rstrip().endswith(":"))
