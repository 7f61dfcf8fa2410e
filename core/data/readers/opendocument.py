"""OpenDocument (LibreOffice): texts (.odt), sheets (.ods) and presentations (.odp) are one XML vocabulary.

`text:h` are headings with a level, `text:p` paragraphs, `text:list` lists, `table:table` tables, `draw:page` slides.
Repeated cells and rows are stored once with a count. What tracked changes deleted lies apart from the text and is left
out; notes and comments lie inside it and are put behind the block they belong to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.data.readers.office import Package, attribute, descendants, local
from luthier.core.data.readers.read import READERS, Block, Extracted
from luthier.core.data.readers.sheets import regions
from luthier.core.data.readers.tables import flat, table_text
from luthier.core.errors import DocumentError

__all__ = ["read_opendocument"]

LEFT_OUT = ("tracked-changes", "forms", "sequence-decls", "bibliography-configuration", "ruby-text", "variable-decls")
MOST_CELLS = 1_000  # in a row; a sheet's last cell is often "repeated" to the end of the sheet
MOST_ROWS = 20_000


@dataclass
class Reading:
    package: Package
    parents: dict[str, str] = field(default_factory=dict)
    """Style of a single paragraph → the named style it is based on."""
    numbered: dict[str, list[bool]] = field(default_factory=dict)
    """List style → for each level whether its items are numbered."""
    blocks: list[Block] = field(default_factory=list)
    waiting: list[Block] = field(default_factory=list)
    page: int = 0

    def inside(self) -> Reading:
        """A reading of something inside this one's document."""
        return Reading(self.package, self.parents, self.numbered, page=self.page)


def read_opendocument(file: Path, data: bytes) -> Extracted:
    package = Package(file, data)
    manifest = package.xml("META-INF/manifest.xml")
    if manifest is not None and next(descendants(manifest, "encryption-data"), None) is not None:
        raise DocumentError("encrypted", f"{file}: protected by a password\nSave a copy without it.")
    root = package.xml("content.xml")
    body = next(descendants(root, "body"), None) if root is not None else None
    if body is None or not len(body):
        raise DocumentError("unreadable", f"{file}: an OpenDocument file without content")
    kind = {"spreadsheet": "ods", "presentation": "odp"}.get(local(body[0]), "odt")
    reading = Reading(package)
    for part in filter(lambda r: r is not None, (package.xml("styles.xml"), root)):
        reading.parents |= {
            attribute(e, "name") or "": attribute(e, "parent-style-name") or "" for e in descendants(part, "style")
        }
        for style in descendants(part, "list-style"):
            reading.numbered[attribute(style, "name") or ""] = [local(e) == "list-level-style-number" for e in style]
    _walk(reading, body[0], kind)
    edges = list(_edges(package)) if kind == "odt" else []
    blocks = [b for b in edges if b.kind == "header"] + reading.blocks + [b for b in edges if b.kind == "footer"]
    return Extracted(blocks, READERS[kind][2], _title(package))


def _title(package: Package) -> str:
    root = package.xml("meta.xml")
    found = [e.text or "" for e in descendants(root, "title")] if root is not None else []
    return " ".join(found[0].split()) if found else ""


def _edges(package: Package) -> Iterator[Block]:
    """Running headers and footers, each once."""
    root = package.xml("styles.xml")
    seen = set()
    for master in descendants(root, "master-styles") if root is not None else ():
        for element in master.iter():
            kind = local(element).split("-")[0]
            if kind in ("header", "footer") and local(element) not in ("header-style", "footer-style"):
                text = "\n".join(t for p in descendants(element, "p") if (t := _text(Reading(package), p)))
                if text and text not in seen:
                    seen.add(text)
                    yield Block(text, kind)


# ---------------------------------------------------------------- the walk


def _walk(reading: Reading, parent: Any, kind: str) -> None:
    for child in parent:
        name = local(child)
        if name in LEFT_OUT:
            continue
        if name == "page":
            reading.page += 1
            _slide(reading, child, kind)
        elif name == "h":
            level = attribute(child, "outline-level") or "1"
            _add(reading, " ".join(_text(reading, child).split()), "heading", int(level) if level.isdigit() else 1)
        elif name == "p":
            _paragraph(reading, child)
        elif name == "list":
            _add(reading, "\n".join(_items(reading, child)), "list")
        elif name == "table" and kind == "ods":
            _sheet(reading, child)
        elif name == "table":
            _add(reading, table_text(list(_grid(reading, child))), "table")
        elif name == "annotation":
            _aside(reading, child)
            _flush(reading)
        else:
            _walk(reading, child, kind)


def _add(reading: Reading, text: str, kind: str, level: int = 0) -> None:
    if text.strip():
        reading.blocks.append(Block(text, kind, reading.page, min(6, level)))
    _flush(reading)


def _flush(reading: Reading) -> None:
    reading.blocks += reading.waiting
    reading.waiting = []


def _paragraph(reading: Reading, element: Any) -> None:
    style = attribute(element, "style-name") or ""
    style = (style if re.match(r"(?i)title|subtitle|heading", style) else reading.parents.get(style, "")).lower()
    if style in ("title", "subtitle") or style.startswith("heading"):
        _add(reading, " ".join(_text(reading, element).split()), "heading", 1 if style == "title" else 2)
    else:
        _add(reading, _text(reading, element), "paragraph")


def _slide(reading: Reading, page: Any, kind: str) -> None:
    titles = [e for e in page if attribute(e, "class") == "title"]
    for title in titles:
        _add(reading, " ".join(" ".join(_text(reading, p) for p in descendants(title, "p")).split()), "heading", 1)
    for shape in page:
        if local(shape) == "notes":
            notes = reading.inside()
            _walk(notes, shape, kind)
            _add(reading, "\n".join(b.text for b in notes.blocks), "note")
        elif shape not in titles:
            _walk(reading, [shape], kind)


# ---------------------------------------------------------------- text


def _text(reading: Reading, element: Any) -> str:
    return "".join(_pieces(reading, element)).strip()


def _pieces(reading: Reading, element: Any) -> Iterator[str]:
    """The text of a paragraph; white space counts once, as in HTML, more of it is in elements of its own."""
    yield _collapsed(element.text)
    for child in element:
        name = local(child)
        if name == "s":
            yield " " * min(100, int(attribute(child, "c") or 1))
        elif name == "tab":
            yield "\t"
        elif name == "line-break":
            yield "\n"
        elif name in ("note", "annotation"):
            _aside(reading, child)
        elif name == "object":
            yield _formula(reading, child)
        elif name == "text-box":
            inner = reading.inside()
            _walk(inner, child, "odt")
            reading.waiting += inner.blocks
        elif name not in (*LEFT_OUT, "annotation-end"):
            yield from _pieces(reading, child)
        yield _collapsed(child.tail)


def _collapsed(text: str | None) -> str:
    if not text:
        return ""
    inner = " ".join(text.split())
    return (" " if text[0].isspace() else "") + inner + (" " if inner and text[-1].isspace() else "")


def _aside(reading: Reading, element: Any) -> None:
    """A note or a comment, to stand behind the block it is in."""
    kind = "note" if local(element) == "note" else "comment"
    author = next((e.text or "" for e in element if local(e) == "creator"), "")
    text = "\n".join(t for p in descendants(element, "p") if (t := _text(reading.inside(), p)))
    if text:
        reading.waiting.append(Block(f"{author}: {text}" if author else text, kind, reading.page))


def _formula(reading: Reading, element: Any) -> str:
    """A formula object's source, as its author typed it."""
    name = (attribute(element, "href") or "").removeprefix("./")
    root = reading.package.xml(f"{name}/content.xml") if name else None
    if root is None or local(root) != "math":
        return ""
    source = next(descendants(root, "annotation"), None)
    return f" {(source.text if source is not None else ''.join(root.itertext())) or ''} "


def _items(reading: Reading, element: Any, depth: int = 0, style: str = "") -> Iterator[str]:
    style = attribute(element, "style-name") or style
    numbered = (reading.numbered.get(style, []) + [False] * (depth + 1))[depth]
    number = 0
    for item in element:
        texts = []
        inner: list[str] = []
        for child in item:
            if local(child) == "list":
                inner += _items(reading, child, depth + 1, style)
            elif local(child) in ("p", "h"):
                texts.append(" ".join(_text(reading, child).split()))
        if any(texts):
            number += 1
            yield f"{'  ' * depth}{f'{number}.' if numbered else '-'} {' '.join(filter(None, texts))}"
        yield from inner


# ---------------------------------------------------------------- tables


def _grid(reading: Reading, table: Any, most: int = MOST_ROWS) -> Iterator[list[str]]:
    """Rows of a table; a cell over several rows stands in each."""
    below: dict[int, tuple[int, str]] = {}
    count = 0
    for row in _rows(table):
        line: list[str] = []
        for cell in row:
            if local(cell) not in ("table-cell", "covered-table-cell"):
                continue
            text = _cell(reading, cell)
            left, above = below.get(len(line), (0, ""))
            if local(cell) == "covered-table-cell" and left and not text:
                text = above
                below[len(line)] = (left - 1, above)
            elif local(cell) == "table-cell":
                below[len(line)] = (int(attribute(cell, "number-rows-spanned") or 1) - 1, text)
            repeated = int(attribute(cell, "number-columns-repeated") or 1)
            line += [text] * min(repeated, MOST_CELLS if text else 100)
        while line and not line[-1]:
            line.pop()
        repeated = int(attribute(row, "number-rows-repeated") or 1)
        for _ in range(min(repeated, most - count) if line else 1):
            yield line
            count += 1
        if count >= most:
            return


def _rows(table: Any) -> Iterator[Any]:
    for child in table:
        if local(child) == "table-row":
            yield child
        elif local(child) in ("table-header-rows", "table-rows", "table-row-group"):
            yield from _rows(child)


def _cell(reading: Reading, cell: Any) -> str:
    inner = reading.inside()
    _walk(inner, cell, "odt")
    reading.waiting += [b for b in inner.blocks if b.kind in ("note", "comment")]
    return " ".join(" ".join(flat(b) for b in inner.blocks if b.kind not in ("note", "comment")).split())


def _sheet(reading: Reading, table: Any) -> None:
    from luthier.core.data.readers.sheets import region_blocks

    cells = {(r, c): text for r, row in enumerate(_grid(reading, table), 1) for c, text in enumerate(row, 1) if text}
    if cells:
        reading.blocks.append(Block(attribute(table, "name") or "", "heading", 0, 1))
        reading.blocks += [block for region in regions(cells) for block in region_blocks(region)]
    _flush(reading)
