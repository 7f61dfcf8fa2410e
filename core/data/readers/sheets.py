"""Excel workbooks (.xlsx): every sheet as tables, with numbers and dates as the sheet shows them.

A sheet is a plane on which people put several things: titles, tables beside and below each other, remarks. Rows and
columns without a filled cell part it into regions; a region of one cell or one column is text, the others are tables.
Formulas give the value that was last computed. Sheets that are hidden are left out and noted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from luthier.core.data.readers.office import Package, attribute, chart_blocks, descendants, local
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.data.readers.slides import text_of
from luthier.core.data.readers.tables import table_text
from luthier.core.errors import DocumentError

__all__ = ["number_text", "read_xlsx", "region_blocks", "regions"]

MOST_ROWS = 20_000  # a sheet; more is a database
# the formats that have a number and no code in the file (ECMA-376, 18.8.30)
BUILT_IN = {
    1: "0",
    2: "0.00",
    3: "#,##0",
    4: "#,##0.00",
    9: "0%",
    10: "0.00%",
    37: "#,##0",
    38: "#,##0",
    39: "#,##0.00",
}
BUILT_IN |= {40: "#,##0.00", 44: "#,##0.00"}
BUILT_IN |= dict.fromkeys((14, 15, 16, 17), "yyyy-mm-dd") | dict.fromkeys((18, 19, 20, 21, 45, 46, 47), "h:mm")
BUILT_IN |= {22: "yyyy-mm-dd h:mm"}


def read_xlsx(file: Path, data: bytes) -> Extracted:
    package = Package(file, data)
    part = package.main("xl/workbook.xml")
    root = package.xml(part)
    if root is None:
        raise DocumentError("unreadable", f"{file}: a workbook without its main part")
    targets = {r.id: r.target for r in package.relations(part)}
    strings = [s for name in package.related(part, "sharedStrings") for s in _strings(package.xml(name))]
    formats = [f for name in package.related(part, "styles") for f in _formats(package.xml(name))]
    from_1904 = any(attribute(e, "date1904") in ("1", "true") for e in descendants(root, "workbookPr"))
    out = Extracted([], "", package.title())
    for sheet in descendants(root, "sheet"):
        name = attribute(sheet, "name") or ""
        target = targets.get(next((v for k, v in sheet.attrib.items() if k.endswith("relationships}id")), ""))
        if attribute(sheet, "state") in ("hidden", "veryHidden"):
            out.notes.append(f"sheet {name}: hidden, left out")
        elif target and (content := package.xml(target)) is not None:
            blocks = [*_sheet(content, strings, formats, from_1904, name, out.notes), *_beside(package, target)]
            if blocks:
                out.blocks += [Block(name, "heading", 0, 1), *blocks]
            else:
                out.notes.append(f"sheet {name}: empty")
    return out


def _strings(root: Any) -> Iterator[str]:
    """The shared strings; readings aids over Japanese characters (`rPh`) are left out."""
    for item in root:
        if local(item) == "si":
            yield "".join(t.text or "" for t in descendants(item, "t") if local(t.getparent()) != "rPh")


def _formats(root: Any) -> Iterator[str]:
    """The number format of each cell style."""
    own = {int(attribute(e, "numFmtId") or 0): attribute(e, "formatCode") or "" for e in descendants(root, "numFmt")}
    for group in descendants(root, "cellXfs"):
        for style in group:
            number = int(attribute(style, "numFmtId") or 0)
            yield own.get(number, BUILT_IN.get(number, ""))


# ---------------------------------------------------------------- cells


def _sheet(
    content: Any, strings: list[str], formats: list[str], from_1904: bool, name: str, notes: list[str]
) -> list[Block]:
    cells: dict[tuple[int, int], str] = {}
    row_number = 0
    for count, row in enumerate(descendants(content, "row")):
        if count >= MOST_ROWS:
            notes.append(f"sheet {name}: more than {MOST_ROWS:,} rows, the rest left out")
            break
        row_number = int(attribute(row, "r") or row_number + 1)
        column = 0
        for cell in (e for e in row if local(e) == "c"):
            column = _column(attribute(cell, "r")) or column + 1
            text = _value(cell, strings, formats, from_1904)
            if text:
                cells[row_number, column] = text
    _fill_merged(content, cells)
    return [block for region in regions(cells) for block in region_blocks(region)]


def _column(reference: str | None) -> int:
    """`C12` → 3; 0 without a reference."""
    number = 0
    for letter in re.match("[A-Z]*", reference or "")[0]:  # type: ignore[index]
        number = number * 26 + ord(letter) - 64
    return number


def _value(cell: Any, strings: list[str], formats: list[str], from_1904: bool) -> str:
    kind = attribute(cell, "t") or "n"
    parts = {local(e): e for e in cell}
    if kind == "inlineStr":
        return "".join(t.text or "" for t in descendants(cell, "t")).strip()
    raw = (parts["v"].text or "").strip() if "v" in parts else ""
    if not raw:
        return ""
    if kind == "s":
        return strings[int(raw)].strip() if raw.isdigit() and int(raw) < len(strings) else ""
    if kind == "b":
        return "TRUE" if raw == "1" else "FALSE"
    if kind in ("str", "d"):
        return raw
    if kind == "e":
        return ""  # #REF! and the like say nothing
    style = attribute(cell, "s") or "0"
    return number_text(raw, formats[int(style)] if style.isdigit() and int(style) < len(formats) else "", from_1904)


def number_text(raw: str, code: str, from_1904: bool = False) -> str:
    """A number as a cell with the format `code` shows it; dates as ISO 8601.

    >>> number_text("45292", "dd/mm/yyyy"), number_text("0.125", "0.0%"), number_text("1234.5", '#,##0.00 "EUR"')
    ('2024-01-01', '12.5%', '1,234.50 EUR')
    """
    try:
        value = float(raw)
    except ValueError:
        return raw
    code = re.sub(r"\[([hms])+\]", r"\1", code.split(";")[0], flags=re.IGNORECASE)
    bare = re.sub(r'"[^"]*"|\\.|\[[^\]]*\]|_.|\*.', "", code)
    if re.search(r"[ymdhs]", bare, re.IGNORECASE) and not re.search(r"[0#?]", bare.split(".")[0]) and bare != "General":
        return _date(value, bare.lower(), from_1904) or _plain_number(value)
    if not re.search(r"[0#]", bare) or "E" in bare:
        return _plain_number(value)
    digits = len(match[1]) if (match := re.search(r"\.([0#?]+)", bare)) else 0
    least = match[1].count("0") if match else 0
    percent = "%" in bare
    text = f"{100 * value if percent else value:,.{digits}f}"
    if least < digits:
        text = re.sub(rf"\.?0{{0,{digits - least}}}$", "", text) if "." in text else text
    text = text if "," in bare else text.replace(",", "")
    before, after = _around(code)
    return f"{before}{text}{'%' if percent else ''}{after}".strip()


def _around(code: str) -> tuple[str, str]:
    """What a format puts before and after the number: a currency, a unit."""
    code = re.sub(r"\[\$([^\]-]*)[^\]]*\]", r'"\1"', code)
    code = re.sub(r"\[[^\]]*\]|_.|\*.", "", code)
    match = re.search(r"[0#?][0#?,. ]*", code)
    if match is None:
        return "", ""
    end = match.start() + len(match[0].rstrip(" "))
    before, after = (re.sub(r'"([^"]*)"|\\(.)|%', r"\1\2", part) for part in (code[: match.start()], code[end:]))
    return before, after


def _plain_number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.10g}"


def _date(value: float, code: str, from_1904: bool) -> str:
    """A day number as a date, with the time where the format shows one; a mere time where it shows no day."""
    if not 0 <= value < 2_958_466:
        return ""
    zero = datetime(1904, 1, 1) if from_1904 else datetime(1899, 12, 30 if value >= 61 else 31)
    moment = zero + timedelta(seconds=round(value * 86400))
    time = moment.strftime("%H:%M:%S" if moment.second else "%H:%M")
    if not re.search(r"[yd]", code) and re.search(r"[hs]", code):
        return time if value < 1 else f"{int(value * 24)}:{moment.minute:02}"
    return moment.strftime("%Y-%m-%d") + (f" {time}" if re.search(r"[hs]", code) else "")


def _fill_merged(content: Any, cells: dict[tuple[int, int], str]) -> None:
    """A cell merged over several rows stands in each of them; its other columns are taken, though empty."""
    for merge in descendants(content, "mergeCell"):
        match = re.fullmatch(r"([A-Z]+)(\d+):([A-Z]+)(\d+)", attribute(merge, "ref") or "")
        if match and int(match[4]) - int(match[2]) < 1000:
            column, first = _column(match[1]), int(match[2])
            text = cells.get((first, column), "")
            for row in range(first, int(match[4]) + 1) if text else ():
                cells.setdefault((row, column), text)
                for taken in range(column + 1, min(_column(match[3]), column + 100) + 1):
                    cells.setdefault((row, taken), "")


# ---------------------------------------------------------------- regions


def regions(cells: dict[tuple[int, int], str]) -> Iterator[list[list[str]]]:
    """The rectangles of a sheet that empty rows and columns part, from top to bottom and left to right."""
    if not cells:
        return
    for part in _bands(cells, 0):
        sides = list(_bands(part, 1))
        for side in sides:
            if len(side) < len(cells):
                yield from regions(side)
                continue
            rows = sorted({r for r, _ in side})
            columns = sorted({c for _, c in side})
            yield [[side.get((r, c), "") for c in columns] for r in rows]


def _bands(cells: dict[tuple[int, int], str], axis: int) -> Iterator[dict[tuple[int, int], str]]:
    """The cells parted where a whole row (axis 0) or column (axis 1) is empty. A single empty column does not part what
    begins and ends in the same rows: accountants put them between the columns of one table."""
    lines: dict[int, dict[tuple[int, int], str]] = {}
    for key, text in cells.items():
        lines.setdefault(key[axis], {})[key] = text
    groups: list[dict[tuple[int, int], str]] = []
    last = None
    for number in sorted(lines):
        if last is None or number > last + 1:
            groups.append({})
        groups[-1].update(lines[number])
        last = number
    merged: list[dict[tuple[int, int], str]] = []
    for group in groups:
        if axis == 1 and merged and _rows_of(merged[-1]) == _rows_of(group) and _gap(merged[-1], group) == 1:
            merged[-1].update(group)
        else:
            merged.append(group)
    yield from merged


def _rows_of(cells: dict[tuple[int, int], str]) -> tuple[int, int]:
    rows = [row for row, _ in cells]
    return min(rows), max(rows)


def _gap(left: dict[tuple[int, int], str], right: dict[tuple[int, int], str]) -> int:
    """How many columns lie between two groups of cells."""
    return min(column for _, column in right) - max(column for _, column in left) - 1


def region_blocks(rows: list[list[str]]) -> list[Block]:
    """A region as a table; lines of one cell above it are its title, a region of one column is text."""
    blocks = []
    while len(rows) > 1 and sum(map(bool, rows[0])) == 1 and max(sum(map(bool, row)) for row in rows[1:]) > 1:
        blocks.append(Block(next(filter(None, rows[0])), "caption"))
        rows = rows[1:]
    if max(sum(map(bool, row)) for row in rows) <= 1:
        return [*blocks, *(Block(text) for row in rows for text in row if text)]
    return [*blocks, Block(table_text(rows), "table")]


# ---------------------------------------------------------------- beside the cells


def _beside(package: Package, part: str) -> list[Block]:
    """Comments at cells, text boxes and charts."""
    blocks = []
    for name in package.related(part, "threadedComment"):
        people = {
            attribute(e, "id"): attribute(e, "displayName")
            for book in package.related("xl/workbook.xml", "person")
            for e in descendants(package.xml(book), "person")
        }
        for thread in descendants(package.xml(name), "threadedComment"):
            text = " ".join(e.text or "" for e in descendants(thread, "text"))
            author = people.get(attribute(thread, "personId"))
            blocks.append(_comment(attribute(thread, "ref"), author, text))
    for name in package.related(part, "comments"):
        root = package.xml(name)
        authors = [e.text or "" for e in descendants(root, "author")]
        for comment in descendants(root, "comment"):
            text = "".join(t.text or "" for t in descendants(comment, "t")).strip()
            number = attribute(comment, "authorId") or ""
            author = authors[int(number)] if number.isdigit() and int(number) < len(authors) else ""
            if not text.startswith("[Threaded comment]") and not author.startswith("tc="):
                blocks.append(_comment(attribute(comment, "ref"), author, text))
    for name in package.related(part, "drawing"):
        blocks += [Block(text) for shape in descendants(package.xml(name), "sp") if (text := text_of(shape))]
        for chart in package.related(name, "chart"):
            blocks += [Block(text, kind) for kind, text in chart_blocks(package.xml(chart)) if kind == "caption"]
    return blocks


def _comment(cell: str | None, author: str | None, text: str) -> Block:
    said = text.removeprefix(f"{author}:").strip() if author else text
    return Block(f"{cell or ''} {author or ''}".strip() + f": {said}", "comment")
