"""Web pages: the visible text in its structure, without what is the same on every page.

An HTML file is a tree. We walk it once: inline elements (`b`, `a`, `span`) add their text to the open paragraph, block
elements (`p`, `li`, `table`, `h2`) close it. Left out is what nobody reads as text: scripts, styles, forms' controls,
hidden elements, and navigation: `nav`, and headers, footers and asides that are mostly links. If one `main` or
`article` element holds most of the words, the rest is taken for furniture.

Mails, e-books and Markdown pages become HTML on their way and end here, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.data.readers.plain import decode
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.data.readers.tables import table_text

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

__all__ = ["html_blocks", "html_text", "read_html"]

HIDDEN = ["script", "style", "noscript", "template", "svg", "head", "iframe", "object", "canvas", "audio", "video"]
CONTROLS = ["button", "select", "input", "textarea", "dialog"]
FURNITURE = re.compile(r"(?i)\b(navigation|banner|search|menu|menubar|toolbar|tablist|contentinfo|doc-toc)\b")
EXTRAS = "sup.reference, .mw-editsection, .noprint, .skip-link, .sr-only, .visually-hidden, .breadcrumb, .cookie-banner"
BLOCKS = set(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure "  # noqa: SIM905
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol p pre section summary table "
    "tbody td tfoot th thead tr ul".split()
)


def read_html(file: Path, data: bytes) -> Extracted:
    """The main content of a web page."""
    soup = parse(decode(data, _declared(data)))
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    return Extracted(html_blocks(soup), "text/html", title)


def _declared(data: bytes) -> str | None:
    """The encoding that a page names in its head."""
    match = re.search(rb"""(?i)<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?([\w-]+)""", data[:4096])
    name = match[1].decode("ascii", "replace").lower() if match else None
    if name in ("iso-8859-1", "latin1", "latin-1", "us-ascii", "ascii"):
        return "cp1252"  # what browsers take it for
    return name


def parse(markup: str) -> BeautifulSoup:
    from bs4 import BeautifulSoup

    markup = re.sub(r"^\s*<\?xml[^>]*\?>", "", markup)
    return BeautifulSoup(markup, "lxml")


def html_blocks(soup: BeautifulSoup, *, quotes: bool = False, page: int = 0, main_only: bool = True) -> list[Block]:
    """The blocks of a parsed page. `quotes`: quoted paragraphs get `> ` before each line, as in mails; `main_only`:
    without the page's furniture."""
    _strip(soup)
    if main_only:
        _without_furniture(soup)
    walk = _Walk(quotes, page)
    root = (_main(soup) if main_only else None) or soup.body or soup
    try:
        walk.children(root)
        walk.close()
    except RecursionError:  # thousands of elements inside one another: the text, without its structure
        return [Block(line, "paragraph", page) for line in soup.get_text("\n").split("\n") if line.strip()]
    return walk.blocks


def html_text(markup: str) -> str:
    """The text of a piece of HTML, its blocks joined by empty lines."""
    return "\n\n".join(b.text for b in html_blocks(parse(markup), main_only=False))


# ---------------------------------------------------------------- what is left out


def _strip(soup: BeautifulSoup) -> None:
    from bs4 import Comment, Declaration, Doctype, ProcessingInstruction

    for text in soup.find_all(string=lambda s: isinstance(s, (Comment, Declaration, Doctype, ProcessingInstruction))):
        text.extract()
    for tag in soup.find_all([*HIDDEN, *CONTROLS]):
        tag.extract()
    for tag in soup.select(EXTRAS):
        tag.extract()
    for tag in soup.find_all(_is_hidden):
        tag.extract()


def _without_furniture(soup: BeautifulSoup) -> None:
    """Take out what looks like furniture, unless that is nearly all there is: a page of links is a page."""
    found = [
        tag for tag in soup.find_all(["nav", "header", "footer", "aside", "menu", "ul", "div"]) if _is_furniture(tag)
    ]
    ids = {id(tag) for tag in found}  # `==` on tags would compare all that is in them
    outer = [tag for tag in found if not any(id(parent) in ids for parent in tag.parents)]
    whole = len("".join(soup.get_text().split()))
    if sum(len("".join(tag.get_text().split())) for tag in outer) < 0.9 * whole:
        for tag in outer:
            tag.extract()


def _is_hidden(tag: Tag) -> bool:
    style = str(tag.get("style") or "").replace(" ", "").lower()
    return tag.name not in ("html", "body") and (
        tag.has_attr("hidden") or "display:none" in style or "visibility:hidden" in style
    )


def _is_furniture(tag: Tag) -> bool:
    """Navigation by name or role; headers, footers and asides of a page if more than half of their text is links."""
    if tag.name == "nav" or FURNITURE.search(str(tag.get("role") or "")):
        return tag.name != "main" and len(tag.find_all(["p", "td"])) < 10
    if tag.name in ("ul", "div", "menu"):
        marks = " ".join([*(tag.get("class") or []), str(tag.get("id") or "")]).lower()
        named = re.search(r"\b(nav|navbar|menu|breadcrumbs?|sidebar|toc|social|share|cookies?)\b", marks)
        return bool(named) and _links(tag) > 0.5
    return _links(tag) > 0.5 and tag.find_parent(["article", "main"]) is None


def _links(tag: Tag) -> float:
    """The share of an element's text that is links."""
    whole = len("".join(tag.get_text().split()))
    return sum(len("".join(a.get_text().split())) for a in tag.find_all("a")) / whole if whole else 1.0


def _main(soup: BeautifulSoup) -> Tag | None:
    """The one element that a page calls its main content, if it holds most of its words."""
    found = soup.find_all("main") or soup.select('[role="main"]') or soup.find_all("article")
    if len(found) != 1 or not soup.body:
        return None
    return found[0] if len(found[0].get_text()) > 0.6 * len(soup.body.get_text()) else None


# ---------------------------------------------------------------- the walk


class _Walk:
    """The blocks so far, and the text of the paragraph that is open."""

    def __init__(self, quotes: bool, page: int) -> None:
        self.blocks: list[Block] = []
        self.open: list[str] = []
        self.quotes = quotes
        self.page = page
        self.depth = 0
        """How many quotations we are inside."""

    def close(self, kind: str = "paragraph", level: int = 0) -> None:
        self.add(_inline("".join(self.open)), kind, level)
        self.open = []

    def add(self, text: str, kind: str, level: int = 0) -> None:
        if self.depth and self.quotes and text.strip():
            text = "\n".join("> " * self.depth + line for line in text.split("\n"))
            kind = "paragraph"
        if text.strip():
            self.blocks.append(Block(text, kind, self.page, level))

    def children(self, tag: Tag) -> None:
        from bs4 import Tag
        from bs4.element import NavigableString

        for child in list(tag.children):
            if isinstance(child, Tag):
                self.element(child)
            elif isinstance(child, NavigableString):
                self.open.append(re.sub(r"\s+", " ", str(child)))

    def element(self, tag: Tag) -> None:
        name = tag.name.lower()
        if name == "br":
            self.open.append("\n")
        elif name == "math":
            self.open.append(_formula(tag))
        elif name == "img":
            pass  # an `alt` describes what is not there
        elif name not in BLOCKS:
            self.children(tag)
        else:
            self.close()
            self.block(tag, name)

    def block(self, tag: Tag, name: str) -> None:
        if re.fullmatch("h[1-6]", name) and not tag.find(["table", "ul", "ol", "pre", "p"]):
            self.children(tag)
            self.close("heading", int(name[1]))
        elif name == "pre" and not tag.find(["table", "p", "h1", "h2", "h3"]):
            self.add(_code(tag), "code")
        elif name in ("ul", "ol", "menu") and _is_list(tag):
            self.add("\n".join(_items(tag)), "list")
            for inner in tag.find_all("table"):
                self.block(inner, "table")
        elif name == "dl" and tag.find("dt") and not tag.find(["table", "h1", "h2", "h3", "pre"]):
            self.add("\n".join(_terms(tag)), "list")
        elif name == "table" and _is_table(tag):
            self.table(tag)
        elif name == "blockquote":
            self.depth += 1
            self.children(tag)
            self.close()
            self.depth -= 1
        else:
            kind = {"figcaption": "caption", "caption": "caption", "footer": "footer"}.get(name, "paragraph")
            self.children(tag)
            self.close(kind)

    def table(self, tag: Tag) -> None:
        for caption in tag.find_all("caption"):
            self.add(_text(caption), "caption")
        self.add(table_text(_cells(tag)), "table")


def _inline(text: str) -> str:
    lines = (re.sub(r"[ \t\r\f\v]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{2,}", "\n", "\n".join(lines)).strip()


def _text(tag: Tag) -> str:
    """All text of an element on one line."""
    out = []
    for piece in tag.descendants:
        name = getattr(piece, "name", None)
        if name is None:
            out.append(str(piece))
        elif name in BLOCKS or name == "br":
            out.append(" ")
    return " ".join("".join(out).split())


def _formula(tag: Tag) -> str:
    """A formula as its author wrote it in TeX, else its signs."""
    source = tag.find("annotation", attrs={"encoding": "application/x-tex"})
    return f" {(source or tag).get_text().strip()} "


def _code(tag: Tag) -> str:
    for line_break in tag.find_all("br"):
        line_break.replace_with("\n")
    return tag.get_text().strip("\n")


# ---------------------------------------------------------------- lists


def _is_list(tag: Tag) -> bool:
    """Whether a list is one of short items, not a frame around sections and pictures."""
    return bool(tag.find("li")) and not tag.find(["h1", "h2", "h3", "h4", "pre"])


def _items(tag: Tag, indent: str = "") -> list[str]:
    lines, number = [], _start(tag)
    for item in tag.find_all(["li", "ul", "ol"], recursive=False):
        if item.name != "li":  # a list directly in a list
            lines += _items(item, indent + "  ")
            continue
        nested = [t for t in item.find_all(["ul", "ol"]) if t.find_parent("li") is item]
        inner = [line for t in nested for line in _items(t, indent + "  ")]
        for t in nested:
            t.extract()
        text = _text_without_tables(item)
        if text:
            lines.append(f"{indent}{f'{number}.' if tag.name == 'ol' else '-'} {text}")
            number += 1
        lines += inner
    return lines


def _text_without_tables(item: Tag) -> str:
    whole = _text(item)
    for table in item.find_all("table"):
        whole = whole.replace(_text(table), " ")
    return " ".join(whole.split())


def _start(tag: Tag) -> int:
    start = str(tag.get("start") or "1")
    return int(start) if start.isdigit() else 1


def _terms(tag: Tag) -> list[str]:
    """`- Term: definition` for each term; several definitions of one term follow each other."""
    lines: list[str] = []
    for part in tag.find_all(["dt", "dd"]):
        if part.find_parent("dl") is not tag:
            continue
        inner = [
            f"  {line}" for dl in part.find_all("dl") if dl.find_parent("dl") is tag for line in _terms(dl.extract())
        ]
        text = _text(part)
        if part.name == "dt" or not lines:
            lines.append(f"- {text}")
        elif text:
            lines[-1] += f"{' ' if lines[-1].endswith((':', '.', ';')) else ': '}{text}"
        lines += inner
    return lines


# ---------------------------------------------------------------- tables


def _is_table(tag: Tag) -> bool:
    """Whether a table holds data; one with a table, headings or lists of lists in it only arranges a page."""
    rows = [r for r in tag.find_all("tr") if r.find_parent("table") is tag]
    if tag.find("table") is not None and not tag.find("th"):
        return False
    width = max((len(r.find_all(["td", "th"], recursive=False)) for r in rows), default=0)
    return width > 1 and (len(rows) > 1 or bool(tag.find("th"))) and not tag.find(["h1", "h2", "h3", "pre"])


def _cells(tag: Tag) -> list[list[str]]:
    """The rows of a table. A cell over several columns or rows fills the first of the columns, and every row, so that
    each row can be understood alone."""
    rows: list[list[str]] = []
    below: dict[int, tuple[int, str]] = {}  # column → (rows it still reaches down, text)
    for row in tag.find_all("tr"):
        if row.find_parent("table") is not tag:
            continue
        cells: list[str] = []

        def from_above(cells: list[str] = cells) -> None:
            while below.get(len(cells), (0, ""))[0] > 0:
                left, text = below[len(cells)]
                below[len(cells)] = (left - 1, text)
                cells.append(text)

        for cell in row.find_all(["td", "th"], recursive=False):
            from_above()
            text, across = _text(cell), _count(cell, "colspan")
            for n in range(across):
                below[len(cells)] = (_count(cell, "rowspan") - 1, text if n == 0 else "")
                cells.append(text if n == 0 else "")
        from_above()
        rows.append(cells)
    return rows


def _count(cell: Tag, attribute: str) -> int:
    value = re.match(r"\s*(\d+)", str(cell.get(attribute) or "1"))
    return min(1000, max(1, int(value[1]))) if value else 1
