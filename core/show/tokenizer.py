"""A tokenizer in the terminal: its size, its special and its longest tokens; with a text, the tokens in colours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.show.shards import coloured, visible

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["show_tokenizer"]

LONGEST = 30
SPECIAL = 12  # shown by name
SAMPLE = "The quick brown fox jumps over the lazy dog. 12,345 kg – Füße, naïve, 東京 🎻\n"


def show_tokenizer(folder: Path, text: str | None = None, console: Console | None = None) -> None:
    """Print the human view of a tokenizer's or model's folder, or a tokenizer.json, to stdout.

    Raises TokenizerFileError if there is none or if it is not byte-level BPE.
    """
    from rich.console import Console

    from luthier.tokenizers.formats import load_tokenizer

    tokenizer, console = load_tokenizer(Path(folder)), console or Console(highlight=False)
    _facts(console, Path(folder), tokenizer)
    _longest(console, tokenizer)
    _say(console, "\nyour text:" if text else "\na sample (give your own with --text):", "bold")
    _tokens(console, tokenizer, text or SAMPLE)


def _facts(console: Console, folder: Path, tokenizer: Tokenizer) -> None:
    merges, special = len(tokenizer.merges), list(tokenizer.special_tokens.items())
    _say(console, f"{folder}: a byte-level BPE tokenizer of {tokenizer.vocab_size:,} ids, {merges:,} merges\n")
    named = ", ".join(f"{token} {i}" for token, i in special[:SPECIAL])
    _say(console, f"special tokens  {len(special)}: {named}{', …' if len(special) > SPECIAL else ''}")
    if tokenizer.added_tokens:
        _say(
            console,
            f"added tokens    {len(tokenizer.added_tokens)}: {', '.join(list(tokenizer.added_tokens)[:SPECIAL])}",
        )
    _say(console, f"pattern         {tokenizer.pattern}")
    _say(console, f"chat template   {'yes' if tokenizer.chat_template else 'none'}")
    lengths = Counter(len(token) for token in tokenizer.ids_of_bytes)
    spread = ", ".join(f"{n} bytes: {count:,}" for n, count in sorted(lengths.items())[:8])
    _say(console, f"tokens by size  {spread}{', …' if len(lengths) > 8 else ''}")


def _longest(console: Console, tokenizer: Tokenizer) -> None:
    longest = sorted(tokenizer.ids_of_bytes, key=lambda token: (-len(token), token))[:LONGEST]
    _say(console, "\nlongest tokens:", "bold")
    console.print(coloured(longest, plain=not console.is_terminal), soft_wrap=True)


def _tokens(console: Console, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, allowed_special="all")
    tokens = [tokenizer.tokens[i] for i in ids]
    console.print(coloured(tokens, plain=not console.is_terminal), soft_wrap=True)
    _say(console, "ids " + " ".join(f"{i}:{visible(token)}" for i, token in zip(ids, tokens, strict=True)))
    size = len(text.encode("utf-8"))
    _say(console, f"{len(ids):,} tokens, {size:,} bytes, {size / max(len(ids), 1):.2f} bytes a token")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, style=style or None, soft_wrap=True)
