"""Markdown: parsed as CommonMark with tables by markdown-it-py, whose HTML the HTML reader takes apart.

Around it stand the things that site generators add: front matter between `---` lines (its title is taken), template
tags (`{% include … %}`, `{{ … }}`), attribute lists (`{: .class}`) and footnotes. They are taken out outside of code.
"""

from __future__ import annotations

import re
from pathlib import Path

from luthier.core.data.readers.html import html_blocks, parse
from luthier.core.data.readers.plain import decode
from luthier.core.data.readers.read import Block, Extracted

__all__ = ["read_markdown"]

FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
CODE = re.compile(r"(^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[`~]*[ \t]*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
TEMPLATE = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{[:#][^}\n]*\}|<!--.*?-->", re.DOTALL)
FOOTNOTE = re.compile(r"^\[\^([^\]\s]+)\]:[ \t]*(.+(?:\n(?:[ \t]{2,}).+)*)", re.MULTILINE)


def read_markdown(file: Path, data: bytes) -> Extracted:
    from markdown_it import MarkdownIt

    text = decode(data)
    front = FRONT.match(text)
    if front:
        text = text[front.end() :]
    text, notes = _without_extras(text)
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    blocks = html_blocks(parse(html), main_only=False)
    blocks += [Block(" ".join(note.split()), "note") for note in notes]
    return Extracted(blocks, "text/markdown", _front_title(front[1] if front else ""))


def _front_title(front: str) -> str:
    match = re.search(r"^title:[ \t]*(\S.*?)[ \t]*$", front, re.MULTILINE)
    return match[1].strip("\"'") if match else ""


def _without_extras(text: str) -> tuple[str, list[str]]:
    """The text without template tags and footnotes, code left as it is; and the footnotes."""
    pieces = CODE.split(text)  # text, code, fence, text, …
    notes: list[str] = []

    def note(match: re.Match[str]) -> str:
        notes.append(match[2])
        return ""

    kept = []
    for number, piece in enumerate(pieces):
        if number % 3 == 0:
            piece = FOOTNOTE.sub(note, TEMPLATE.sub("", piece))
            piece = re.sub(r"\[([^\]\n]+)\]\(\s*\)", r"\1", piece)  # a link whose address was a template tag
            kept.append(re.sub(r"\[\^[^\]\s]+\]", "", piece))
        elif number % 3 == 1:
            kept.append(piece)
    return "".join(kept), notes
