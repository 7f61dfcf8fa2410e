"""Read one document: whatever format a company keeps its texts in becomes blocks with page numbers.

    bytes ─▶ what is it? ─▶ its reader ─▶ Extracted(blocks, title, notes, attachments)
             (content first, then the name)      Block(text, kind, page, level)

The content decides, the name only helps where content cannot: a PDF called `notes.txt` is read as a PDF, but plain text
becomes Markdown or CSV by its name alone. A reader gives everything it finds, in reading order, each piece under the
kind it has (a footnote is a `note`, a comment a `comment`), and says in `notes` what it could not read. It cleans
nothing: line breaks, hyphens and running headers are left for `core/data/clean.py`.

A document that cannot be read raises DocumentError with one of the rules of `core/data/collect.UNREADABLE`:

    missing  empty  unreadable (damaged)  encrypted  no-text (nothing on any page)  unknown-format  low-confidence (OCR)

Kinds of blocks: heading (with level 1 to 6), paragraph, list (one item a line, `- ` or `1. ` before it), table (a
Markdown pipe table), caption, header, footer, note, comment, code, ocr.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import DocumentError

__all__ = ["Block", "Extracted", "read_document"]

LARGEST = 1 << 30  # bytes; a text of this size is a database, and would fill the memory several times over


@dataclass
class Block:
    """A piece of a document. `page` counts from 1, 0 where the format has no pages; `level` is a heading's."""

    text: str
    kind: str = "paragraph"
    page: int = 0
    level: int = 0


@dataclass
class Extracted:
    """What a reader found. `notes` are words to the user about what was not or hardly read; `metadata` holds a mail's
    headers (`message_id`, `in_reply_to`, `subject`, `date`, `from`, `to`); `attachments` are (name, content)."""

    blocks: list[Block]
    media_type: str
    title: str = ""
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    attachments: list[tuple[str, bytes]] = field(default_factory=list)


# format → (module in this folder, function, media type)
READERS = {
    "pdf": ("pdf", "read_pdf", "application/pdf"),
    "image": ("image", "read_image", "image/*"),
    "docx": ("word", "read_docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    "pptx": ("slides", "read_pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    "xlsx": ("sheets", "read_xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    "odt": ("opendocument", "read_opendocument", "application/vnd.oasis.opendocument.text"),
    "ods": ("opendocument", "read_opendocument", "application/vnd.oasis.opendocument.spreadsheet"),
    "odp": ("opendocument", "read_opendocument", "application/vnd.oasis.opendocument.presentation"),
    "epub": ("epub", "read_epub", "application/epub+zip"),
    "rtf": ("rtf", "read_rtf", "application/rtf"),
    "msg": ("outlook", "read_msg", "application/vnd.ms-outlook"),
    "eml": ("mail", "read_eml", "message/rfc822"),
    "html": ("html", "read_html", "text/html"),
    "markdown": ("markdown", "read_markdown", "text/markdown"),
    "csv": ("tables", "read_csv", "text/csv"),
    "code": ("plain", "read_code", "text/plain"),
    "plain": ("plain", "read_plain", "text/plain"),
}


def read_document(file: Path, data: bytes | None = None) -> Extracted:
    """Read `file`, or `data` under the name `file`. Raises DocumentError if it cannot be read.

    >>> read_document(Path("hours.md"), b"# Hours").blocks
    [Block(text='Hours', kind='heading', page=0, level=1)]
    """
    from luthier.core.data.readers.formats import format_of

    file = Path(file)
    data = _bytes(file) if data is None else data
    if not data.strip(b" \t\r\n\0"):
        raise DocumentError("empty", f"{file}: the file is empty")
    name = format_of(file, data)
    module, function, media_type = READERS[name]
    reader = getattr(importlib.import_module(f"luthier.core.data.readers.{module}"), function)
    extracted: Extracted = reader(file, data)
    extracted.media_type = extracted.media_type or media_type
    extracted.blocks = [b for b in extracted.blocks if b.text.strip()]
    if not extracted.blocks and not extracted.attachments:
        reasons = "; ".join(extracted.notes) or "nothing in it but marks and white space"
        raise DocumentError("no-text", f"{file}: no text found: {reasons}")
    return extracted


def _bytes(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise DocumentError("unreadable", f"{file}: {size / 2**30:.1f} GiB is more than the 1 GiB that is read")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise DocumentError("missing", f"{file}: no such file") from error
    except OSError as error:
        raise DocumentError("unreadable", f"{file}: cannot be opened: {error.strerror}") from error
