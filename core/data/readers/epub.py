"""E-books (.epub): a zip archive of web pages and a list of the order in which to read them."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import unquote

from luthier.core.data.readers.html import html_blocks, parse
from luthier.core.data.readers.office import Package, attribute, descendants
from luthier.core.data.readers.plain import decode
from luthier.core.data.readers.read import Extracted
from luthier.core.errors import DocumentError

__all__ = ["read_epub"]


def read_epub(file: Path, data: bytes) -> Extracted:
    package = Package(file, data)
    container = package.xml("META-INF/container.xml")
    rootfile = next(descendants(container, "rootfile"), None) if container is not None else None
    path = attribute(rootfile, "full-path") if rootfile is not None else None
    book = package.xml(path) if path else None
    if path is None or book is None:
        raise DocumentError("unreadable", f"{file}: an e-book without a table of its parts")
    if package.bytes("META-INF/rights.xml") is not None:
        raise DocumentError("encrypted", f"{file}: protected by its seller (DRM)")
    items = {attribute(e, "id"): e for e in descendants(book, "item")}
    title = next((e.text or "" for e in descendants(book, "title")), "")
    out = Extracted([], "", " ".join(title.split()))
    for reference in descendants(book, "itemref"):
        item = items.get(attribute(reference, "idref"))
        if item is None or "nav" in (attribute(item, "properties") or "").split():
            continue
        name = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(attribute(item, "href") or "")))
        content = package.bytes(name)
        if content is None:
            out.notes.append(f"{name}: missing in the file")
        else:
            out.blocks += html_blocks(parse(decode(content)), main_only=False)
    return out
