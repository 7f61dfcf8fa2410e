"""Plain text, and the bytes under it: which characters do these bytes stand for?

A byte-order mark says so; without one UTF-8 is tried first, because wrong bytes are almost never valid UTF-8. UTF-16
shows by its zero bytes. What remains is an old one-byte table: Western European (cp1252) if its upper half is used
sparsely, as in English, German or French; otherwise (Cyrillic, Greek, Chinese …) charset-normalizer is asked.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from luthier.core.data.readers.read import Block, Extracted

__all__ = ["decode", "is_text", "paragraphs", "read_code", "read_plain"]

MARKS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def is_text(data: bytes) -> bool:
    """Whether bytes are text: no control characters to speak of, or UTF-16."""
    sample = data[:65536]
    if sample.startswith(tuple(mark for mark, _ in MARKS)) or _utf16(sample):
        return True
    return len(CONTROL.findall(sample)) <= len(sample) / 200


def _utf16(sample: bytes) -> str:
    """The byte order of UTF-16 without a mark, or an empty string: in most texts every second byte is zero."""
    even, odd = sample[0::2], sample[1::2]
    if len(sample) < 4 or (len(sample) % 2 and len(sample) < 65536):
        return ""
    if odd.count(0) > 0.4 * len(odd) and even.count(0) < 0.05 * len(even):
        return "utf-16-le"
    return "utf-16-be" if even.count(0) > 0.4 * len(even) and odd.count(0) < 0.05 * len(odd) else ""


def encoding_of(data: bytes) -> str:
    """The name of the encoding of a text."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    if name := _utf16(data[:65536]):
        return name
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError as error:
        broken = len(data.decode("utf-8", "replace").encode("utf-8")) - len(data)
        valid = error.start > 1000 and broken < len(data) / 1000  # one damaged character in an else clean text
        return "utf-8" if valid else _one_byte(data)


def _one_byte(data: bytes) -> str:
    letters = len(re.findall(rb"[A-Za-z]", data))
    upper = len(re.findall(rb"[\x80-\xff]", data))
    if letters < 5 * upper and upper >= 8:  # fewer say nothing
        from charset_normalizer import from_bytes

        best = from_bytes(data[:200_000]).best()
        if best is not None:
            return best.encoding
    if re.search(rb"[\x81\x8d\x8f\x90\x9d]", data):
        return "latin-1"
    return "cp1252"


def decode(data: bytes, declared: str | None = None) -> str:
    """The text that `data` stands for, with `\\n` line ends. A declared encoding is believed if it fits."""
    if declared and not data.startswith(tuple(mark for mark, _ in MARKS)):
        try:
            return _lines(data.decode(declared))
        except (LookupError, ValueError):
            pass
    return _lines(data.decode(encoding_of(data), "replace"))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")


# ---------------------------------------------------------------- readers

ITEM = re.compile(r"\s*(?:[-*+•‣▪–]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])\s+\S")
RULE = re.compile(r"\s*([-=_*~#+])\1{3,}\s*")


def paragraphs(text: str) -> list[Block]:
    """Blocks of a plain text: what empty lines part, lists among them, titles underlined with `===`."""
    blocks = []
    for part in re.split(r"\n[ \t\f]*\n", text.replace("\f", "\n\n")):
        lines = [line.rstrip() for line in part.split("\n") if line.strip()]
        if len(lines) >= 2 and re.fullmatch(r"\s*(={3,}|-{3,})\s*", lines[1]) and len(lines[0]) < 100:
            blocks.append(Block(lines[0].strip(), "heading", 0, 1 if "=" in lines[1] else 2))
            lines = lines[2:]
        lines = [line for line in lines if not RULE.fullmatch(line)]
        items = sum(bool(ITEM.match(line)) for line in lines)
        if items >= 2 and ITEM.match(lines[0]):
            blocks.append(Block(_items(lines), "list"))
        elif lines:
            blocks.append(Block("\n".join(lines), "paragraph"))
    return blocks


def _items(lines: list[str]) -> str:
    """List lines with continuation lines joined to their item, every bullet a dash."""
    out: list[str] = []
    for line in lines:
        if ITEM.match(line) or not out:
            out.append(re.sub(r"^(\s*)[*+•‣▪–]\s+", r"\1- ", line))
        else:
            out[-1] += " " + line.strip()
    return "\n".join(out)


def read_plain(file: Path, data: bytes) -> Extracted:
    return Extracted(paragraphs(decode(data)), "text/plain")


def read_code(file: Path, data: bytes) -> Extracted:
    """Source code and data files: one block, its lines as they are."""
    return Extracted([Block(decode(data).strip("\n"), "code")], "text/plain")
