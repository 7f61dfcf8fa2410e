"""Word documents (.docx): every part of WordprocessingML that holds words.

    document.xml   paragraphs, tables, text boxes, formulas; deleted text (tracked changes) is left out, inserted stays
    styles.xml     which style is a heading, of which level        numbering.xml   what stands before a list's items
    header*.xml, footer*.xml, footnotes.xml, endnotes.xml, comments.xml, charts/, diagrams/

Notes and comments follow at the end of the section they belong to. Where nothing has a heading's style, short bold
lines are taken for headings, because people write so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.data.readers.office import Package, attribute, chart_blocks, descendants, local, math_text
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.data.readers.tables import flat, table_text
from luthier.core.errors import DocumentError

__all__ = ["read_docx"]

LEFT_OUT = ("del", "moveFrom", "instrText", "delText", "rPr", "pPr", "sectPr", "tblPr", "sdtPr", "proofErr")
CODE = re.compile(r"(?i)\b(code|source|listing|preformatted|verbatim|macro)")


@dataclass
class Style:
    name: str = ""
    parent: str = ""
    level: int | None = None
    list: tuple[str, int] | None = None
    bold: bool | None = None


@dataclass
class Reading:
    """A document while it is read: its package, styles, lists and their counts, and what waits for a section's end."""

    package: Package
    part: str
    styles: dict[str, Style]
    formats: dict[tuple[str, int], tuple[str, str, int]]
    blocks: list[Block] = field(default_factory=list)
    counts: dict[tuple[str, int], int] = field(default_factory=dict)
    waiting: list[Block] = field(default_factory=list)
    boxes: list[Block] = field(default_factory=list)
    bold: set[int] = field(default_factory=set)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)


def read_docx(file: Path, data: bytes) -> Extracted:
    package = Package(file, data)
    part = package.main("word/document.xml")
    root = package.xml(part)
    body = next((e for e in root if local(e) == "body"), None) if root is not None else None
    if body is None:
        raise DocumentError("unreadable", f"{file}: a Word document without a body")
    reading = Reading(package, part, _styles(package, part), _formats(package, part))
    reading.notes = _notes(reading)
    _walk(reading, body)
    reading.blocks += reading.waiting
    _bold_headings(reading)
    edges = [Block(text, kind) for kind in ("header", "footer") for text in _edges(reading, kind)]
    blocks = [b for b in edges if b.kind == "header"] + reading.blocks + [b for b in edges if b.kind == "footer"]
    return Extracted(blocks, "", package.title())


# ---------------------------------------------------------------- parts beside the text


def _styles(package: Package, part: str) -> dict[str, Style]:
    out = {}
    for name in package.related(part, "styles"):
        for element in descendants(package.xml(name), "style"):
            style = Style()
            for e in element.iter():
                value = attribute(e, "val") or ""
                match local(e):
                    case "name":
                        style.name = value
                    case "basedOn":
                        style.parent = value
                    case "outlineLvl" if value.isdigit():
                        style.level = int(value)
                    case "numId":
                        style.list = (value, style.list[1] if style.list else 0)
                    case "ilvl" if value.isdigit():
                        style.list = (style.list[0] if style.list else "", int(value))
                    case "b":
                        style.bold = value not in ("0", "false")
            out[attribute(element, "styleId") or ""] = style
    return out


def _formats(package: Package, part: str) -> dict[tuple[str, int], tuple[str, str, int]]:
    """(list, level) → (kind of number, its text with %1 for the first level's number, first number)."""
    out: dict[tuple[str, int], tuple[str, str, int]] = {}
    for name in package.related(part, "numbering"):
        root = package.xml(name)
        abstract = {attribute(e, "abstractNumId"): e for e in root if local(e) == "abstractNum"}
        for number in (e for e in root if local(e) == "num"):
            identity = attribute(number, "numId") or ""
            refers = next((attribute(e, "val") for e in number if local(e) == "abstractNumId"), None)
            levels = [*descendants(abstract[refers], "lvl")] if refers in abstract else []
            for level in [*levels, *descendants(number, "lvl")]:
                values = {local(e): attribute(e, "val") or "" for e in level}
                start = values.get("start", "1")
                out[identity, int(attribute(level, "ilvl") or 0)] = (
                    values.get("numFmt", "decimal"),
                    values.get("lvlText", ""),
                    int(start) if start.isdigit() else 1,
                )
    return out


def _notes(reading: Reading) -> dict[tuple[str, str], str]:
    """(kind of reference, id) → text of every footnote, endnote and comment."""
    out = {}
    for kind, element_name in (("footnotes", "footnote"), ("endnotes", "endnote"), ("comments", "comment")):
        for part in reading.package.related(reading.part, kind):
            for e in reading.package.xml(part):
                if local(e) != element_name or attribute(e, "type") in ("separator", "continuationSeparator"):
                    continue
                text = "\n".join(t for p in descendants(e, "p") if (t := _plain(reading, p)))
                author = attribute(e, "author")
                out[element_name, attribute(e, "id") or ""] = f"{author}: {text}" if author and text else text
    return out


def _edges(reading: Reading, kind: str) -> list[str]:
    """The texts of all headers or footers, each once."""
    out: list[str] = []
    for part in reading.package.related(reading.part, kind):
        inner = Reading(reading.package, part, reading.styles, reading.formats)
        _walk(inner, reading.package.xml(part))
        text = "\n".join(flat(b) for b in inner.blocks if b.text.strip())
        if text and text not in out:
            out.append(text)
    return out


# ---------------------------------------------------------------- the walk


def _walk(reading: Reading, parent: Any) -> None:
    for child in parent:
        name = local(child)
        if name == "p":
            _paragraph(reading, child)
        elif name == "tbl":
            _table(reading, child)
        elif name == "AlternateContent":
            _walk(reading, _choice(child))
        elif name not in LEFT_OUT and len(child):
            _walk(reading, child)


def _choice(element: Any) -> Any:
    """Of the ways in which a thing is stored, the first that has text."""
    ways = [e for e in element if local(e) in ("Choice", "Fallback")]
    return next((e for e in ways if any((t.text or "").strip() for t in descendants(e, "t"))), ways[0] if ways else [])


def _properties(element: Any) -> dict[str, Any]:
    inner = next((e for e in element if local(e) == "pPr"), None)
    return {local(e): e for e in inner.iter()} if inner is not None else {}


def _paragraph(reading: Reading, element: Any) -> None:
    properties = _properties(element)
    style_id = attribute(properties["pStyle"], "val") if "pStyle" in properties else ""
    chain = list(_chain(reading.styles, style_id or ""))
    text = "".join(_runs(reading, element)).strip()
    boxes, reading.boxes = reading.boxes, []
    level = _level(properties, chain)
    mark, depth = _mark(reading, properties, chain) if text else ("", 0)
    if text and level:
        reading.blocks += reading.waiting
        reading.waiting = []
        mark = mark if mark != "-" else ""
        reading.blocks.append(Block(f"{mark} {text}".strip(), "heading", 0, min(6, level)))
    elif text and mark:
        line = f"{'  ' * depth}{mark} {' '.join(text.split())}"
        _append(reading, line, "list")
    elif text and any(CODE.search(s.name) for s in chain):
        _append(reading, "".join(_runs(reading, element)).rstrip(), "code")
        reading.boxes = []
    elif text:
        kind = "caption" if any(s.name.lower() == "caption" for s in chain) else "paragraph"
        reading.blocks.append(Block(text, kind))
        if _is_bold(element, chain):
            reading.bold.add(len(reading.blocks) - 1)
    reading.blocks += boxes


def _append(reading: Reading, line: str, kind: str) -> None:
    """Add a line to the list or code that is open, or begin one."""
    if reading.blocks and reading.blocks[-1].kind == kind:
        reading.blocks[-1].text += "\n" + line
    else:
        reading.blocks.append(Block(line, kind))


def _chain(styles: dict[str, Style], name: str) -> Iterator[Style]:
    """A style and those it is based on."""
    seen = set()
    while name in styles and name not in seen:
        seen.add(name)
        yield styles[name]
        name = styles[name].parent


def _level(properties: dict[str, Any], chain: list[Style]) -> int:
    """A heading's level, 0 for what is none."""
    own = attribute(properties["outlineLvl"], "val") if "outlineLvl" in properties else None
    outline = int(own) if own and own.isdigit() else next((s.level for s in chain if s.level is not None), None)
    if outline is not None:
        return outline + 1 if outline < 9 else 0
    for style in chain:
        if match := re.match(r"(?i)heading (\d)", style.name):
            return int(match[1])
        if style.name.lower() == "title":
            return 1
    return 0


def _is_bold(element: Any, chain: list[Style]) -> bool:
    """Whether all letters of a paragraph are bold."""
    by_style = next((s.bold for s in chain if s.bold is not None), False)
    runs = [r for r in descendants(element, "r") if any((t.text or "").strip() for t in r if local(t) == "t")]
    for run in runs:
        own = next((e for p in run if local(p) == "rPr" for e in p if local(e) == "b"), None)
        bold = by_style if own is None else attribute(own, "val") not in ("0", "false")
        if not bold:
            return False
    return bool(runs)


def _bold_headings(reading: Reading) -> None:
    if any(b.kind == "heading" for b in reading.blocks):
        return
    for index in reading.bold:
        block = reading.blocks[index]
        words = block.text.split()
        if (
            len(words) <= 12
            and "\n" not in block.text
            and block.text[-1] not in ".,;:"
            and len(reading.bold) * 2 < len(reading.blocks)
        ):
            block.kind, block.level = "heading", 2


# ---------------------------------------------------------------- lists


def _mark(reading: Reading, properties: dict[str, Any], chain: list[Style]) -> tuple[str, int]:
    """What stands before a paragraph (`-`, `2.`, `1.3`, or nothing) and how deep in a list it is."""
    identity, depth = next((s.list for s in chain if s.list), ("", 0))
    if "numId" in properties:
        identity = attribute(properties["numId"], "val") or ""
        depth = 0
    if "ilvl" in properties:
        depth = int(attribute(properties["ilvl"], "val") or 0)
    if identity in ("", "0"):
        bulleted = any(re.match(r"(?i)list bullet", s.name) for s in chain)
        return ("-", 0) if bulleted else ("", 0)
    kind, text, start = reading.formats.get((identity, depth), ("bullet", "", 1))
    if kind in ("bullet", "none"):
        return ("-" if kind == "bullet" else "", depth)
    counts = reading.counts
    counts[identity, depth] = counts.get((identity, depth), start - 1) + 1
    for key in [k for k in counts if k[0] == identity and k[1] > depth]:
        del counts[key]

    def number(match: re.Match[str]) -> str:
        level = int(match[1]) - 1
        kind, _, start = reading.formats.get((identity, level), ("decimal", "", 1))
        return _numeral(counts.get((identity, level), start), kind)

    return re.sub(r"%(\d)", number, text or f"%{depth + 1}."), depth


def _numeral(value: int, kind: str) -> str:
    if kind in ("lowerLetter", "upperLetter") and value > 0:
        letter = chr(97 + (value - 1) % 26) * ((value - 1) // 26 + 1)
        return letter if kind == "lowerLetter" else letter.upper()
    if kind in ("lowerRoman", "upperRoman") and 0 < value < 4000:
        out = ""
        for worth, sign in zip(
            (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
            ("m", "cm", "d", "cd", "c", "xc", "l", "xl", "x", "ix", "v", "iv", "i"),
            strict=True,
        ):
            out += sign * (value // worth)
            value %= worth
        return out if kind == "lowerRoman" else out.upper()
    return str(value)


# ---------------------------------------------------------------- the text of a paragraph


def _runs(reading: Reading, element: Any) -> Iterator[str]:
    """The pieces of text below an element; notes, comments and text boxes found on the way are put aside."""
    for child in element:
        name = local(child)
        match name:
            case "t":
                yield child.text or ""
            case "tab" | "ptab":
                yield "\t"
            case "br" | "cr":
                yield "\n"
            case "noBreakHyphen":
                yield "-"
            case "softHyphen":
                yield "\u00ad"
            case "sym":
                code = int(attribute(child, "char") or "0", 16)
                yield chr(code) if 0x20 < code < 0xE000 else ""
            case "oMath":
                yield f" {math_text(child)} "
            case "footnoteReference" | "endnoteReference" | "commentReference":
                kind = name.removesuffix("Reference")
                text = reading.notes.pop((kind, attribute(child, "id") or ""), "")
                if text:
                    reading.waiting.append(Block(text, "comment" if kind == "comment" else "note"))
            case "txbxContent":
                inner = Reading(reading.package, reading.part, reading.styles, reading.formats, notes=reading.notes)
                _walk(inner, child)
                reading.boxes += inner.blocks
                reading.waiting += inner.waiting
            case "chart" | "relIds":
                reading.boxes += _drawn(reading, child)
            case "AlternateContent":
                yield from _runs(reading, _choice(child))
            case "p":  # inside a shape's text without a text box
                yield from _runs(reading, child)
                yield "\n"
            case _ if name not in LEFT_OUT:
                yield from _runs(reading, child)


def _plain(reading: Reading, element: Any) -> str:
    return "".join(_runs(reading, element)).strip()


def _drawn(reading: Reading, element: Any) -> list[Block]:
    """The words of a chart or a diagram that a drawing refers to."""
    identity = attribute(element, "dm") or attribute(element, "id")
    for relation in reading.package.relations(reading.part):
        if relation.id == identity and relation.target in reading.package.names:
            root = reading.package.xml(relation.target)
            if relation.kind == "chart":
                return [Block(text, kind) for kind, text in chart_blocks(root)]
            points = [" ".join((t.text or "") for t in descendants(p, "t")) for p in descendants(root, "pt")]
            return [Block("\n".join(f"- {p}" for p in points if p.strip()), "list")]
    return []


# ---------------------------------------------------------------- tables


def _table(reading: Reading, element: Any) -> None:
    rows = [r for r in _below(element, "tr") if not any(local(e) == "del" for p in r if local(p) == "trPr" for e in p)]
    cells = [list(_below(row, "tc")) for row in rows]
    if max(map(len, cells), default=0) <= 1:  # a frame around text
        for row in cells:
            for cell in row:
                _walk(reading, cell)
        return
    grid: list[list[str]] = []
    for row, row_cells in zip(rows, cells, strict=True):
        line = [""] * _before(row)
        for cell in row_cells:
            properties = {local(e): e for p in cell if local(p) == "tcPr" for e in p}
            merged = "vMerge" in properties and attribute(properties["vMerge"], "val") in (None, "continue")
            text = _cell(reading, cell)
            if merged and not text and grid and len(line) < len(grid[-1]):
                text = grid[-1][len(line)]
            span = attribute(properties["gridSpan"], "val") if "gridSpan" in properties else "1"
            line += [text] + [""] * (min(1000, int(span or 1)) - 1)
        grid.append(line)
    boxes, reading.boxes = reading.boxes, []
    reading.blocks.append(Block(table_text(grid), "table"))
    reading.blocks += boxes


def _below(element: Any, name: str) -> Iterator[Any]:
    """The rows of a table or the cells of a row, through what may wrap them."""
    for child in element:
        if local(child) == name:
            yield child
        elif local(child) in ("sdt", "sdtContent", "customXml", "ins", "moveTo"):
            yield from _below(child, name)


def _before(row: Any) -> int:
    value = next((attribute(e, "val") for p in row if local(p) == "trPr" for e in p if local(e) == "gridBefore"), "0")
    return min(1000, int(value or 0))


def _cell(reading: Reading, cell: Any) -> str:
    """A cell's text on one line; lists keep their marks, the cells of a table inside are parted by commas."""
    inner = Reading(reading.package, reading.part, reading.styles, reading.formats, counts=reading.counts)
    inner.notes = reading.notes
    _walk(inner, cell)
    reading.waiting += inner.waiting
    return " ".join(" ".join(map(flat, inner.blocks)).split())
