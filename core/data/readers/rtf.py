"""Rich text (.rtf): control words taken out, the text between them kept.

    {\\rtf1\\ansi {\\fonttbl …} Caf\\'e9 \\u8364? \\par }

A group in braces has its own state; groups that begin with a destination (`\\fonttbl`, `\\pict`, `\\*…`) hold no text.
`\\'e9` is a byte in the document's code page, `\\u8364?` a character with a stand-in for old readers.
"""

from __future__ import annotations

import re
from pathlib import Path

from luthier.core.data.readers.plain import paragraphs
from luthier.core.data.readers.read import Block, Extracted
from luthier.core.data.readers.tables import table_text

__all__ = ["read_rtf"]

TOKEN = re.compile(rb"\\([a-z]+)(-?\d+)? ?|\\'([0-9a-fA-F]{2})|\\([^a-z])|([{}])|[\r\n]+|([^\\{}\r\n]+)", re.DOTALL)
NO_TEXT = set(
    "fonttbl colortbl stylesheet info pict object header headerl headerr headerf footer footerl footerr footerf "  # noqa: SIM905
    "rsidtbl listtable listoverridetable generator themedata colorschememapping datastore latentstyles xmlnstbl "
    "fldinst filetbl revtbl bkmkstart bkmkend nonshppict".split()
)
BEGIN, ROW, CELL = "\x1d", "\x1e", "\x1f"  # where a row begins, a row ends, a cell ends
SIGNS = {
    **{"par": "\n\n", "sect": "\n\n", "page": "\n\n", "line": "\n", "tab": "\t"},
    **{"cell": CELL, "row": ROW, "trowd": BEGIN},
    **{"emdash": "—", "endash": "–", "bullet": "•", "lquote": "‘", "rquote": "’", "ldblquote": "“", "rdblquote": "”"},
}


def read_rtf(file: Path, data: bytes) -> Extracted:
    blocks: list[Block] = []
    rows: list[list[str]] = []

    def end_table() -> None:
        if rows:
            blocks.append(Block(table_text(rows), "table"))
            rows.clear()

    *ended, rest = rtf_text(data).split(ROW)
    for piece in ended:
        before, _, row = piece.rpartition(BEGIN)
        if before.strip(f" \n{BEGIN}"):
            end_table()
            blocks += paragraphs(before.replace(BEGIN, ""))
        rows.append([cell.strip() for cell in row.split(CELL)[:-1]])
    end_table()
    blocks += paragraphs(rest.replace(CELL, " ").replace(BEGIN, ""))
    return Extracted(blocks, "application/rtf")


def rtf_text(data: bytes) -> str:
    """The text of a document, cells and rows marked by BEGIN, ROW and CELL."""
    page = re.search(rb"\\ansicpg(\d+)", data)
    encoding = f"cp{page[1].decode()}" if page else "cp1252"
    out: list[str] = []
    stack: list[tuple[bool, int]] = []
    hidden, stand_ins, skip = False, 1, 0  # inside a destination; characters after \u to pass over; those left
    for match in TOKEN.finditer(data):
        word, number, byte, sign, brace, plain = match.groups()
        if brace == b"{":
            stack.append((hidden, stand_ins))
        elif brace == b"}":
            hidden, stand_ins = stack.pop() if stack else (False, 1)
        elif word is not None:
            name = word.decode()
            if name == "uc":
                stand_ins = int(number or 1)
            elif name in NO_TEXT:
                hidden = True
            elif name == "bin":
                continue
            elif not hidden and name == "u" and number:
                out.append(chr(int(number) % 65536))
                skip = stand_ins
                continue
            elif not hidden and name in SIGNS:
                out.append(SIGNS[name])
        elif sign == b"*":
            hidden = True
        elif hidden:
            continue
        elif byte is not None:
            if skip:
                skip -= 1
                continue
            out.append(_decoded(bytes([int(byte, 16)]), encoding))
        elif sign is not None:
            out.append({b"~": "\u00a0", b"_": "-", b"-": "\u00ad", b"\n": "\n\n"}.get(sign, sign.decode("latin-1")))
        elif plain is not None:
            out.append(_decoded(plain[skip:], encoding))
        skip = 0
    return "".join(out).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding, "replace")
    except LookupError:
        return data.decode("cp1252", "replace")
