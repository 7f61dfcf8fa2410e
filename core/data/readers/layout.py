"""Reading order: pieces of text with boxes become columns, tables and paragraphs.

A PDF page, and a page seen by character recognition, is no text but pieces of line at places. What we do with them:

    segments ─▶ columns: is there an empty stripe (gutter) that hardly anything crosses, with prose on both sides?
                What crosses it (titles, wide figures) parts the page into bands; in each, left is read before right.
             ─▶ rows: segments of one height; several with gaps between them are cells
             ─▶ tables: runs of rows whose cells stand below each other
             ─▶ paragraphs: lines of one size and weight at the page's usual distance

This is the idea of the recursive X-Y cut (Nagy and Seth 1984), with prose asked for on both sides of a vertical cut,
because a table has gutters, too, and must be read across.

Coordinates: x to the right, y down, in any unit; all limits are multiples of the height of the text.
"""

from __future__ import annotations

import itertools
import re
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.core.data.readers.tables import table_text

__all__ = ["Paragraph", "Segment", "arrange", "is_rtl"]

BULLET = re.compile(r"^\s*(?:[-*•‣▪●○◦·–—■□➢➤✓☐☒☑\x80-\x9f\ue000-\uf8ff]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])(?:\s|$)")
GLYPH = re.compile(r"^\s*[*•‣▪●○◦·■□➢➤✓☐☒☑\x80-\x9f\ue000-\uf8ff]\s*")

# PDFium puts the space after a Latin word in an Arabic line before it
MISPLACED = re.compile(r" {1,2}([A-Za-z][A-Za-z0-9.+#-]*)(?=[\u0600-\u06ff])")


@dataclass(frozen=True)
class Segment:
    """A piece of one line, `size` its height; `mono` if all letters are equally wide."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float
    bold: bool = False
    mono: bool = False


@dataclass
class Paragraph:
    """A paragraph, list, table or piece of code, with its lines, and what tells whether it is a heading."""

    text: str
    kind: str
    size: float
    bold: bool = False


def arrange(segments: Sequence[Segment], height: float) -> list[Paragraph]:
    """The paragraphs of a page in reading order; `height` is the page's."""
    segments = [s for s in segments if s.text.strip()]
    if not segments:
        return []
    rtl = is_rtl("".join(s.text for s in segments))
    if rtl:  # mirrored, a page from right to left is one from left to right
        segments = [replace(s, x0=-s.x1, x1=-s.x0) for s in segments]
    paragraphs: list[Paragraph] = []
    for region in _regions(_with_bullets(segments), height):
        new = _paragraphs(region)
        if paragraphs and new and _continues(paragraphs[-1], new[0]):
            paragraphs[-1].text += "\n" + new.pop(0).text
        paragraphs += new
    return paragraphs


def is_rtl(text: str) -> bool:
    """Whether most letters are written from right to left."""
    kinds = [unicodedata.bidirectional(c) for c in text[:5000]]
    return sum(k in ("R", "AL") for k in kinds) > sum(k == "L" for k in kinds)


def _continues(above: Paragraph, below: Paragraph) -> bool:
    """Whether a paragraph goes on at the top of the next column."""
    return (
        above.kind == below.kind == "paragraph"
        and abs(above.size - below.size) < 0.1 * above.size
        and above.bold == below.bold
        and above.text[-1] not in ".!?:;”\"'"
        and below.text[0].islower()
        and len(above.text) > 60
    )


def _with_bullets(segments: list[Segment]) -> list[Segment]:
    """Segments that are but a bullet or a number, joined to the text right of them."""
    marks = [s for s in segments if BULLET.fullmatch(s.text.strip() + " ")]
    rest = [s for s in segments if s not in marks]
    for mark in marks:
        near = [
            s for s in rest if _overlap(s.y0, s.y1, mark.y0, mark.y1) > 0.5 and 0 <= s.x0 - mark.x1 < 4 * max(s.size, 4)
        ]
        if near:
            first = min(near, key=lambda s: s.x0)
            rest[rest.index(first)] = replace(first, text=f"{mark.text.strip()} {first.text}", x0=mark.x0)
        else:
            rest.append(mark)
    return rest


def _overlap(a0: float, a1: float, b0: float, b1: float) -> float:
    """The shared part of two intervals as a share of the shorter."""
    return (min(a1, b1) - max(a0, b0)) / max(1e-6, min(a1 - a0, b1 - b0))


# ---------------------------------------------------------------- columns


def _regions(segments: list[Segment], height: float) -> list[list[Segment]]:
    """Regions of one column each, in reading order."""
    gutter = _gutter(segments)
    if gutter is None:
        return [segments]
    x = (gutter[0] + gutter[1]) / 2
    crossing = [s for s in segments if s.x0 < x < s.x1 and s.x1 - s.x0 > 2 * s.size]
    beside = [s for s in segments if s not in crossing]
    insets = [s for s in crossing if any(_overlap(s.y0, s.y1, t.y0, t.y1) > 0.5 for t in beside)]
    across = [s for s in crossing if s not in insets] + _edges(beside, height)
    out: list[list[Segment]] = []
    left: list[Segment] = []
    right: list[Segment] = []
    wide: list[Segment] = []
    inset: list[Segment] = []  # a caption between the columns, which the text flows around

    def flush_columns() -> None:
        for side in (left, right, inset):
            if side:
                out.extend([side.copy()] if side is inset else _regions(side.copy(), height))
                side.clear()

    def flush_wide() -> None:
        if wide:
            out.append(wide.copy())
            wide.clear()

    separate, floating = {id(s) for s in across}, {id(s) for s in insets}
    for segment in sorted(segments, key=lambda s: (s.y0 + s.y1) / 2):
        if id(segment) in floating:
            inset.append(segment)
        elif id(segment) in separate:
            flush_columns()
            wide.append(segment)
        else:
            flush_wide()
            (left if (segment.x0 + segment.x1) / 2 < x else right).append(segment)
    flush_columns()
    flush_wide()
    return out


def _edges(segments: list[Segment], height: float) -> list[Segment]:
    """Running headers and footers: the first and last rows in a page's margin, set off from the text."""
    rows = _rows(segments)
    found = []
    if len(rows) > 4:
        for row, next_row in ((rows[0], rows[1]), (rows[-1], rows[-2])):
            margin = row[0].y1 < 0.1 * height or row[0].y0 > 0.9 * height
            gap = max(next_row[0].y0 - row[0].y1, row[0].y0 - next_row[0].y1)
            if margin and gap > 0.8 * row[0].size:
                found += row
    return found


def _gutter(segments: list[Segment]) -> tuple[float, float] | None:
    """The widest empty stripe with prose left and right of it, or None."""
    if len(segments) < 8:
        return None
    size = statistics.median(s.size for s in segments)
    best = None
    for a, b in _stripes(segments, 0.5 * size):
        x = (a + b) / 2
        left = [s for s in segments if s.x1 <= x]
        right = [s for s in segments if s.x0 >= x]
        few = len(segments) - len(left) - len(right) <= min(len(left), len(right))
        if few and _is_prose(left, right, wide=b - a > 6 * size) and (best is None or b - a > best[1] - best[0]):
            best = (a, b)
    return best


def _stripes(segments: list[Segment], least: float) -> list[tuple[float, float]]:
    """Intervals of x, at least `least` wide, that less text covers than what lies beside them: the bottom of each
    valley in the profile of how much text stands at x."""
    changes: dict[float, float] = {}
    for s in segments:
        changes[s.x0] = changes.get(s.x0, 0.0) + s.size
        changes[s.x1] = changes.get(s.x1, 0.0) - s.size
    edges = sorted(changes)
    covered, profile = 0.0, []
    for a, b in itertools.pairwise(edges):
        covered += changes[a]
        profile.append((a, b, covered))
    low = 0.5 * max((c for _, _, c in profile), default=0.0)
    stripes: list[tuple[float, float]] = []
    for is_low, group in itertools.groupby(profile, key=lambda p: p[2] <= low):
        valley = list(group)
        if is_low:
            bottom = min(c for a, b, c in valley) + 0.1 * low
            for is_bottom, parts in itertools.groupby(valley, key=lambda p: p[2] <= bottom):
                part = list(parts)
                if is_bottom and part[-1][1] - part[0][0] >= least:
                    stripes.append((part[0][0], part[-1][1]))
    return stripes


def _is_prose(left: list[Segment], right: list[Segment], *, wide: bool = False) -> bool:
    """Whether both sides are lines of running text: many, several words long, and most as long as the longer ones,
    unless the stripe between is `wide`, as between the pages of an open book."""
    for whole in (left, right):
        pieces = [s for s in whole if re.search(r"[^\W\d_]", s.text)]
        side = [cell for row in _rows(pieces) for cell in _cells(row)]
        if len(side) < 4:
            return False
        words = [len(s.text.split()) if " " in s.text.strip() else len(s.text) / 6 for s in side]
        widths = sorted(s.x1 - s.x0 for s in side)
        usual = widths[int(0.85 * (len(widths) - 1))]
        if statistics.median(words) < 3 or (not wide and statistics.median(widths) < 0.45 * usual):
            return False
    return True


# ---------------------------------------------------------------- rows and tables


def _rows(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments of one height together, from top to bottom, each row from left to right."""
    rows: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: (s.y0 + s.y1) / 2):
        last = rows[-1][-1] if rows else None
        middle = (segment.y0 + segment.y1) / 2
        if last is not None and abs(middle - (last.y0 + last.y1) / 2) < 0.4 * min(segment.size, last.size):
            rows[-1].append(segment)
        else:
            rows.append([segment])
    return [sorted(row, key=lambda s: s.x0) for row in rows]


def _cells(row: list[Segment], gap: float = 1.2) -> list[Segment]:
    """A row's segments, those with less than `gap` times their height between them joined."""
    cells = [row[0]]
    for segment in row[1:]:
        last = cells[-1]
        between = segment.x0 - last.x1
        if between < gap * min(segment.size, last.size):
            parted = last.text.endswith(" ") or abs(between) < 0.12 * last.size
            size, bold = max(last.size, segment.size), last.bold and segment.bold
            text = last.text + ("" if parted else " ") + segment.text
            cells[-1] = replace(last, text=text, x1=max(last.x1, segment.x1), size=size, bold=bold)
        else:
            cells.append(segment)
    return cells


def _paragraphs(region: list[Segment]) -> list[Paragraph]:
    fine = _rows(region)
    rows = [_cells(row) for row in fine]
    out: list[Paragraph] = []
    lines: list[Segment] = []
    at = 0
    while at < len(rows):
        end = _table_end(rows, at)
        if end > at and (table := _table([_cells(row, 0.5) for row in fine[at:end]])):
            out += _join(lines)
            lines = []
            out.append(Paragraph(table, "table", rows[at][0].size))
            at = end
        else:
            lines.append(_line(rows[at]))
            at += 1
    return out + _join(lines)


def _table_end(rows: list[list[Segment]], start: int) -> int:
    """The row after the last of a table that starts at `start`; `start` where none does."""
    if len(rows[start]) < 2:
        return start
    end, full = start + 1, 1
    while end < len(rows):
        gap = rows[end][0].y0 - rows[end - 1][0].y1
        if gap > 2.5 * rows[end][0].size:
            break
        if len(rows[end]) < 2:
            inside = rows[end][0].x0 > rows[start][0].x1 and gap < 0.8 * rows[end][0].size  # a cell's second line
            if not (inside or (end + 1 < len(rows) and len(rows[end + 1]) >= 2 and len(rows[end][0].text) < 60)):
                break
        else:
            full += 1
        end += 1
    while end > start and len(rows[end - 1]) < 2 and rows[end - 1][0].x0 <= rows[start][0].x1:
        end -= 1
    return end if full >= 3 or (full >= 2 and len(rows[start]) >= 3) else start


def _table(rows: list[list[Segment]]) -> str:
    """A pipe table of rows of cells; an empty string where the cells do not stand below each other."""
    columns: list[list[float]] = []
    for cell in sorted((c for row in rows if len(row) > 1 for c in row), key=lambda c: c.x0):
        if columns and cell.x0 < columns[-1][1] + 0.2 * cell.size:
            columns[-1][1] = max(columns[-1][1], cell.x1)
        else:
            columns.append([cell.x0, cell.x1])
    if len(columns) < 2:
        return ""
    table: list[list[str]] = []
    clashes = 0
    for number, row in enumerate(rows):
        cells = [""] * len(columns)
        for cell in row:
            n = max(range(len(columns)), key=lambda n: min(cell.x1, columns[n][1]) - max(cell.x0, columns[n][0]))
            clashes += bool(cells[n])
            cells[n] = f"{cells[n]} {cell.text}".strip()
        wrapped = number and not cells[0] and row[0].y0 - rows[number - 1][0].y1 < 0.5 * row[0].size
        if wrapped and sum(map(bool, cells)) < len(columns):
            table[-1] = [_wrapped(a, b) for a, b in zip(table[-1], cells, strict=True)]
        else:
            table.append(cells)
    return "" if clashes > len(rows) else table_text(table)


def _wrapped(above: str, below: str) -> str:
    """A cell's two lines as one."""
    if re.search(r"[^\W\d_]-$", above) and below[:1].islower():
        return above[:-1] + below
    return f"{above} {below}".strip()


def _line(row: list[Segment]) -> Segment:
    """A row as one line."""
    first = row[0]
    text = "  ".join(cell.text for cell in row)
    mono, bold = all(c.mono for c in row), all(c.bold for c in row)
    return replace(first, text=text, x1=row[-1].x1, size=max(c.size for c in row), mono=mono, bold=bold)


# ---------------------------------------------------------------- paragraphs


def _join(lines: list[Segment]) -> list[Paragraph]:
    """Paragraphs from the lines of a column."""
    if not lines:
        return []
    pitches = [b.y0 - a.y0 for a, b in itertools.pairwise(lines) if 0 < b.y0 - a.y0 < 3 * a.size]
    pitch = statistics.median(pitches) if pitches else 1.2 * lines[0].size
    left = min(line.x0 for line in lines)
    groups = [[lines[0]]]
    for above, line in itertools.pairwise(lines):
        if _parts(above, line, pitch, left):
            groups.append([line])
        else:
            groups[-1].append(line)
    return _lists([_paragraph(group) for group in groups])


def _parts(above: Segment, line: Segment, pitch: float, left: float) -> bool:
    """Whether a new paragraph begins with `line`."""
    size = min(above.size, line.size)
    gap = line.y0 - above.y0
    indented = line.x0 - left > 0.8 * size and above.x0 - left < 0.3 * size and not BULLET.match(above.text)
    return (
        (gap > max(1.3 * pitch, pitch + 0.25 * size) and gap > 1.35 * size)
        or abs(above.size - line.size) > 0.12 * max(above.size, line.size)
        or above.bold != line.bold
        or above.mono != line.mono
        or bool(BULLET.match(line.text))
        or (indented and not line.mono and above.text.rstrip().endswith((".", "!", "?", ":", ".”", '."')))
    )


def _paragraph(lines: list[Segment]) -> Paragraph:
    size = statistics.median(line.size for line in lines)
    bold = all(line.bold for line in lines)
    if all(line.mono for line in lines) and len(lines) > 1:
        left = min(line.x0 for line in lines)
        wide = statistics.median((line.x1 - line.x0) / max(1, len(line.text)) for line in lines) or 1
        return Paragraph("\n".join(" " * round((s.x0 - left) / wide) + s.text for s in lines), "code", size)
    texts = [MISPLACED.sub(r" \1 ", line.text.strip()) for line in lines]
    kind = "list" if BULLET.match(texts[0]) else "paragraph"
    texts[0] = GLYPH.sub("- ", texts[0]) if kind == "list" else texts[0]
    return Paragraph("\n".join(texts), kind, size, bold)


def _lists(paragraphs: list[Paragraph]) -> list[Paragraph]:
    """Items that follow each other as one list; a single numbered line in large or bold print is a heading, perhaps."""
    out: list[Paragraph] = []
    for number, paragraph in enumerate(paragraphs):
        if paragraph.kind == "list":
            alone = not any(p.kind == "list" for p in paragraphs[max(0, number - 1) : number + 2] if p is not paragraph)
            if alone and not paragraph.text.startswith("- "):
                paragraph.kind = "paragraph"
            else:
                paragraph.text = _one_line(paragraph.text)
                if out and out[-1].kind == "list" and out[-1].bold == paragraph.bold:
                    out[-1].text += "\n" + paragraph.text
                    continue
        out.append(paragraph)
    return out


def _one_line(text: str) -> str:
    """An item's lines as one, words broken at line ends left as they are, to be mended later."""
    return re.sub(r"(?<![^\W\d_]-)\s*\n\s*", " ", text)
