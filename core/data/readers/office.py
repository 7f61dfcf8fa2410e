"""The package under modern office files and e-books: a zip archive of XML parts that refer to each other.

Such files come from strangers, so nothing is believed: no entity of the XML is expanded, nothing is fetched, and a part
that unpacks to more than it should (a zip bomb) is refused before it is read.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from luthier.core.errors import DocumentError

__all__ = ["Package", "Relation", "chart_blocks", "local", "math_text"]

LARGEST_PART = 300 << 20  # bytes unpacked
LARGEST_SUM = 1 << 30


class Relation(NamedTuple):
    """A part that another one refers to; `kind` is the last word of the relation's type (`image`, `footnotes`)."""

    id: str
    kind: str
    target: str


class Package:
    """A zip archive, its parts read on demand."""

    def __init__(self, file: Path, data: bytes) -> None:
        self.file = file
        self.unpacked = 0
        try:
            self.archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise DocumentError("unreadable", f"{file}: a damaged archive: {error}") from error
        self.names = {name.replace("\\", "/").lstrip("/"): name for name in self.archive.namelist()}

    def bytes(self, part: str) -> bytes | None:
        """A part's content, None if there is none of that name."""
        if part not in self.names:
            return None
        info = self.archive.getinfo(self.names[part])
        self.unpacked += info.file_size
        if info.file_size > LARGEST_PART or self.unpacked > LARGEST_SUM:
            raise DocumentError("unreadable", f"{self.file}: {part} unpacks to {info.file_size >> 20} MiB: refused")
        if info.flag_bits & 1:
            raise DocumentError("encrypted", f"{self.file}: protected by a password\nSave a copy without it.")
        try:
            return self.archive.read(info)
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
            raise DocumentError("unreadable", f"{self.file}: {part} is damaged: {error}") from error
        except Exception as error:  # zlib.error, which is no OSError
            raise DocumentError("unreadable", f"{self.file}: {part} is damaged: {error}") from error

    def xml(self, part: str) -> Any:
        """The root element of an XML part, None if it is not there."""
        data = self.bytes(part)
        if data is None or not data.strip():
            return None
        import lxml.etree as etree  # type: ignore[import-untyped]

        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, recover=True, huge_tree=False)
        root = etree.fromstring(data, parser)
        if root is None:
            raise DocumentError("unreadable", f"{self.file}: {part} is no XML")
        return root

    def relations(self, part: str) -> list[Relation]:
        """What a part refers to inside the package."""
        folder, name = posixpath.split(part)
        root = self.xml(posixpath.join(folder, "_rels", f"{name}.rels"))
        out = []
        for item in root if root is not None else ():
            if local(item) == "Relationship" and item.get("TargetMode") != "External":
                target = item.get("Target", "")
                target = (
                    target.lstrip("/") if target.startswith("/") else posixpath.normpath(posixpath.join(folder, target))
                )
                out.append(Relation(item.get("Id", ""), item.get("Type", "").rsplit("/", 1)[-1], target))
        return out

    def related(self, part: str, kind: str) -> list[str]:
        """The parts of one kind that `part` refers to and that are there."""
        return [r.target for r in self.relations(part) if r.kind == kind and r.target in self.names]

    def main(self, default: str) -> str:
        """The part that holds the document itself."""
        found = self.related("", "officeDocument")
        return found[0] if found else default

    def title(self) -> str:
        root = self.xml("docProps/core.xml")
        found = [e.text or "" for e in root.iter() if local(e) == "title"] if root is not None else []
        return " ".join(found[0].split()) if found else ""


def local(element: Any) -> str:
    """An element's name without its namespace; empty for comments and instructions."""
    tag = element.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def attribute(element: Any, name: str) -> str | None:
    """An attribute by its name without namespace."""
    for key, value in element.attrib.items():
        if key.rsplit("}", 1)[-1] == name:
            return value
    return None


def descendants(element: Any, name: str) -> Iterator[Any]:
    return (e for e in element.iter() if local(e) == name)


# ---------------------------------------------------------------- charts and formulas


def chart_blocks(root: Any) -> list[tuple[str, str]]:
    """(kind, text) of a chart: its titles, and its numbers as a table, one column a series."""
    from luthier.core.data.readers.tables import table_text

    titles = [" ".join("".join(t.text or "" for t in descendants(e, "t")).split()) for e in descendants(root, "title")]
    out = [("caption", title) for title in titles if title]
    header, columns, names = [""], [], []
    for series in descendants(root, "ser"):
        parts = {local(e): e for e in series}
        header.append(" ".join(_points(parts.get("tx"))) or f"Series {len(columns) + 1}")
        names = names or _points(parts.get("cat", parts.get("xVal")))
        columns.append(_points(parts.get("val", parts.get("yVal"))))
    rows = [[name, *(c[n] if n < len(c) else "" for c in columns)] for n, name in enumerate(names)]
    if not names and columns:
        rows = [[str(n + 1), *(c[n] if n < len(c) else "" for c in columns)] for n in range(max(map(len, columns)))]
    return [*out, ("table", table_text([header, *rows]))] if rows else out


def _points(element: Any) -> list[str]:
    if element is None:
        return []
    return [_short(v.text or "") for v in descendants(element, "v")]


def _short(value: str) -> str:
    """A number without the dust of binary fractions: 4.4000000000000004 is 4.4."""
    try:
        return f"{float(value):.12g}" if "." in value else value
    except ValueError:
        return value


def math_text(element: Any) -> str:
    """A formula of Office (OMML) on one line: `(a+b)/c`, `x^2`, `√(y)`, `∑_(i=1)^n`."""
    name = local(element)
    parts = {
        local(e): math_text(e) for e in element if local(e) in ("num", "den", "e", "sub", "sup", "deg", "fName", "lim")
    }
    bracket = _bracketed
    if name == "t":
        return element.text or ""
    if name == "f":
        return f"{bracket(parts.get('num', ''))}/{bracket(parts.get('den', ''))}"
    if name == "rad":
        return f"{parts.get('deg', '')}√({parts.get('e', '')})"
    if name in ("sSup", "sSub", "sSubSup", "nary"):
        base = parts.get("e", "") if name != "nary" else _mark(element, "chr", "∫")
        sub, sup = parts.get("sub", ""), parts.get("sup", "")
        out = base + (f"_{bracket(sub)}" if sub else "") + (f"^{bracket(sup)}" if sup else "")
        return out + (f" {parts.get('e', '')}" if name == "nary" else "")
    if name == "d":
        inner = [math_text(e) for e in element if local(e) == "e"]
        return f"{_mark(element, 'begChr', '(')}{', '.join(inner)}{_mark(element, 'endChr', ')')}"
    if name == "m":
        return "[" + "; ".join(", ".join(math_text(e) for e in row) for row in element if local(row) == "mr") + "]"
    if name == "func":
        return f" {parts.get('fName', '')} {parts.get('e', '')}"
    if name.endswith("Pr"):
        return ""
    return "".join(math_text(e) for e in element)


def _bracketed(text: str) -> str:
    return text if re.fullmatch(r"\w*|[^\W_]", text) else f"({text})"


def _mark(element: Any, name: str, default: str) -> str:
    found = next(descendants(element, name), None)
    value = attribute(found, "val") if found is not None else None
    return default if value is None else value
