"""Shards in the terminal: what is in them, and the first documents token by token with where they come from.

On a terminal neighbouring tokens have different colours; elsewhere `│` stands between them. A token that is only a part
of a character (one of the bytes of `ß`) is shown as its bytes in hexadecimal.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.artifacts import read_json, read_manifest
from luthier.core.console import counted
from luthier.core.data.shards import FACTS, Shards, open_shards

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["show_shards"]

COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")
DOCUMENTS = 3  # shown of each split
TOKENS = 120  # shown of each document


def show_shards(folder: Path, console: Console | None = None) -> None:
    """Print the human view of a shards folder to stdout. Raises ArtifactError if it is none."""
    from rich.console import Console

    folder, console = Path(folder), console or Console(highlight=False)
    manifest, facts = read_manifest(folder, "encode"), read_json(folder / FACTS)
    ids = f"{facts['dtype']} ids of a vocabulary of {facts['vocab_size']:,}"
    _say(console, f"{folder}: token shards, {ids}, made from {counted(len(manifest['documents']), 'document')}\n")
    tokenizer = _tokenizer(folder)
    for split, counts in facts["splits"].items():
        _say(console, f"{split}: {_counts(counts)}", "bold")
        _documents(console, open_shards(folder, split), tokenizer)


def _tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer that lies beside the ids; shards of ids from elsewhere have none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from luthier.tokenizers.formats import load_tokenizer

    return load_tokenizer(folder)


def _counts(counts: dict[str, int]) -> str:
    documents, tokens, files = (counted(counts[f"{noun}s"], noun) for noun in ("document", "token", "file"))
    text = f"{documents}, {tokens} in {files}"
    return f"{text}, {counts['bytes'] / counts['tokens']:.2f} bytes a token" if counts.get("bytes") else text


def _documents(console: Console, shards: Shards, tokenizer: Tokenizer | None) -> None:
    """The first documents, and a line about the others."""
    names = shards.names
    for i in range(min(DOCUMENTS, len(shards))):
        ids = shards.document(i)
        line = f", line {shards.documents[i]} of documents.jsonl (from 0)" if shards.documents[i] >= 0 else ""
        _say(console, f"\n  {names[i]}{line}: {len(ids):,} tokens")
        if tokenizer is None:
            console.print(" ".join(map(str, ids[:TOKENS])), markup=False, soft_wrap=True)
        else:
            shown = coloured((tokenizer.tokens[t] for t in ids[:TOKENS]), plain=not console.is_terminal)
            console.print(shown, soft_wrap=True)
    rest = len(shards) - DOCUMENTS
    _say(console, f"\n  … and {rest:,} more in sources.jsonl\n" if rest > 0 else "")


def coloured(tokens: Iterable[bytes], *, plain: bool) -> Text:
    """Tokens next to each other, told apart by colours, or by `│` where there are none."""
    from rich.text import Text

    out = Text()
    for number, token in enumerate(tokens):
        if plain and number:
            out.append("│")
        out.append(visible(token), style="" if plain else COLOURS[number % len(COLOURS)])
    return out


def visible(token: bytes) -> str:
    """A token as text: line ends marked, other control characters and parts of characters in hexadecimal."""
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{token.hex(' ')}>"
    return "".join(
        c if c.isprintable() else "↵\n" if c == "\n" else "→" if c == "\t" else f"<{ord(c):02x}>" for c in text
    )


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, style=style or None, soft_wrap=True)
