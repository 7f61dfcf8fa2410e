"""PowerPoint presentations (.pptx): one page a slide, its title as heading, then what stands on it, then the notes.

Shapes come in the order of the file, which is the order in which a screen reader reads them; the title comes first
wherever it lies. Slide numbers and dates are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.data.readers.office import Package, attribute, chart_blocks, descendants, local, math_text
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.data.readers.tables import table_text
from luthier.core.errors import DocumentError

__all__ = ["read_pptx", "text_of"]

TITLES = ("title", "ctrTitle")
PASSED_OVER = ("sldNum", "dt", "hdr", "sldImg")


def read_pptx(file: Path, data: bytes) -> Extracted:
    package = Package(file, data)
    part = package.main("ppt/presentation.xml")
    root = package.xml(part)
    if root is None:
        raise DocumentError("unreadable", f"{file}: a presentation without slides")
    targets = {r.id: r.target for r in package.relations(part) if r.kind == "slide"}
    out = Extracted([], "", package.title())
    for number, element in enumerate(descendants(root, "sldId"), 1):
        slide = targets.get(_relation_id(element))
        if slide is None or (content := package.xml(slide)) is None:
            out.notes.append(f"slide {number}: missing in the file")
            continue
        out.blocks += _slide(package, slide, content, number)
        if not any(b.page == number for b in out.blocks):
            pictures = next(descendants(content, "pic"), None) is not None
            out.notes.append(f"slide {number}: {'only pictures' if pictures else 'empty'}")
    return out


def _relation_id(element: Any) -> str:
    return next((v for k, v in element.attrib.items() if k.endswith("relationships}id")), "")


def _slide(package: Package, part: str, content: Any, number: int) -> list[Block]:
    tree = next(descendants(content, "spTree"), [])
    blocks = [block for shape in tree for block in _shape(package, part, shape)]
    blocks.sort(key=lambda b: b.kind != "heading")
    for notes in package.related(part, "notesSlide"):
        shapes = [s for s in descendants(package.xml(notes), "sp") if _place(s) == "body"]
        blocks += [Block(text, "note") for s in shapes if (text := text_of(s))]
    for kind in ("comments", "comment"):
        for comments in package.related(part, kind):
            blocks += _comments(package, comments)
    return [Block(b.text, b.kind, number, b.level) for b in blocks]


def _comments(package: Package, part: str) -> list[Block]:
    """Comments of the old and the new kind (where replies stand inside), each with its author."""
    main = package.main("ppt/presentation.xml")
    names = {}
    for kind in ("commentAuthors", "authors"):
        for authors in package.related(main, kind):
            names |= {attribute(e, "id"): attribute(e, "name") for e in package.xml(authors)}
    found = []
    for comment in package.xml(part).iter():
        if local(comment) in ("cm", "reply"):
            own = [e for e in comment if local(e) in ("text", "txBody")]
            text = " ".join(" ".join(t.text or "" for t in e.iter() if t.text).strip() for e in own).strip()
            author = names.get(attribute(comment, "authorId"))
            if text:
                found.append(Block(f"{author}: {text}" if author else text, "comment"))
    return found


def _place(shape: Any) -> str:
    """The placeholder that a shape fills (`title`, `body`, `ftr`), empty for a free shape."""
    place = next(descendants(shape, "ph"), None)
    return (attribute(place, "type") or "body") if place is not None else ""


def _shape(package: Package, part: str, shape: Any) -> list[Block]:
    name = local(shape)
    if name == "grpSp":
        return [block for inner in shape for block in _shape(package, part, inner)]
    if name == "AlternateContent":
        ways = [e for e in shape if local(e) in ("Choice", "Fallback")]
        return [block for inner in (ways[0] if ways else ()) for block in _shape(package, part, inner)]
    if name == "graphicFrame":
        return _frame(package, part, shape)
    if name not in ("sp", "cxnSp") or _place(shape) in PASSED_OVER:
        return []
    if _place(shape) in TITLES:
        text = " ".join(text_of(shape).split())
        return [Block(text, "heading", 0, 1)] if text else []
    if _place(shape) == "ftr":
        return [Block(text_of(shape), "footer")]
    return _body(shape, listed=_place(shape) == "body")


def _body(shape: Any, *, listed: bool) -> list[Block]:
    """Paragraphs; those of a body with several are a list, as are those with a bullet of their own."""
    lines = []
    for paragraph in descendants(shape, "p"):
        text = " ".join(_paragraph_text(paragraph).split("\n")).strip()
        properties = next((e for e in paragraph if local(e) == "pPr"), None)
        marks = {local(e) for e in properties} if properties is not None else set()
        depth = int(attribute(properties, "lvl") or 0) if properties is not None else 0
        bullet = "buNone" not in marks and (listed or bool(marks & {"buChar", "buAutoNum"}))
        if text:
            lines.append((text, depth, bullet))
    listed = sum(bullet for _, _, bullet in lines) > 1
    blocks: list[Block] = []
    for text, depth, bullet in lines:
        if not (listed and bullet):
            blocks.append(Block(text))
        elif blocks and blocks[-1].kind == "list":
            blocks[-1].text += f"\n{'  ' * depth}- {text}"
        else:
            blocks.append(Block(f"{'  ' * depth}- {text}", "list"))
    return blocks


def text_of(shape: Any) -> str:
    """The text of a shape, one line a paragraph."""
    return "\n".join(text for p in descendants(shape, "p") if (text := _paragraph_text(p).strip()))


def _paragraph_text(paragraph: Any) -> str:
    out = []
    for e in paragraph.iter():
        name = local(e)
        if name == "t" and not _in_formula(e):
            out.append(e.text or "")
        elif name == "br":
            out.append("\n")
        elif name == "tab":
            out.append("\t")
        elif name == "oMath":
            out.append(f" {math_text(e)} ")
    return "".join(out)


def _in_formula(element: Any) -> bool:
    return element.tag.startswith("{http://schemas.openxmlformats.org/officeDocument/2006/math}")


def _frame(package: Package, part: str, frame: Any) -> list[Block]:
    """A table, a chart or a diagram."""
    for table in descendants(frame, "tbl"):
        return [Block(table_text(_grid(table)), "table")]
    wanted = {
        v for e in frame.iter() for k, v in e.attrib.items() if k.endswith(("relationships}id", "relationships}dm"))
    }
    blocks = []
    for relation in package.relations(part):
        if relation.id in wanted and relation.target in package.names:
            root = package.xml(relation.target) if relation.target.endswith(".xml") else None
            if relation.kind == "chart" and root is not None:
                blocks += [Block(text, kind) for kind, text in chart_blocks(root)]
            elif relation.kind == "diagramData" and root is not None:
                points = [" ".join(text_of(p).split()) for p in descendants(root, "pt")]
                blocks.append(Block("\n".join(f"- {p}" for p in points if p), "list"))
    return blocks


def _grid(table: Any) -> list[list[str]]:
    grid: list[list[str]] = []
    for row in (e for e in table if local(e) == "tr"):
        line: list[str] = []
        for cell in (e for e in row if local(e) == "tc"):
            text = " ".join(text_of(cell).split())
            if attribute(cell, "vMerge") in ("1", "true") and grid and len(line) < len(grid[-1]):
                text = grid[-1][len(line)]
            line.append("" if attribute(cell, "hMerge") in ("1", "true") else text)
        grid.append(line)
    return grid
