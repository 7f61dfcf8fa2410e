"""A tokenizer in the terminal: its size, special and longest tokens; a text's tokens in colours; how its merges put a
word together (merge_tree.py). How it fits a corpus is in tokenizer_report.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.data.texts import COLUMN
from luthier.core.show.shards import coloured, visible

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.show.merge_tree import Step
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["show_tokenizer"]

LONGEST = 30
SHOWN = 40  # bytes of a token, of longer ones their beginning
SPECIAL = 12  # shown by name
SAMPLE = "The quick brown fox jumps over the lazy dog. 12,345 kg – Füße, naïve, 東京 🎻\n"


def show_tokenizer(
    path: Path,
    text: str | None = None,
    console: Console | None = None,
    *,
    word: str | None = None,
    report: Path | None = None,
    column: str = COLUMN,
) -> None:
    """Print the human view of a tokenizer's or model's folder, or of a tokenizer's file, to stdout: what it is and a
    text in tokens. With `word` instead how its merges put the word together, with `report` how it fits a corpus
    (`column`: see core/data/texts.py).

    Raises TokenizerFileError if there is no tokenizer, InputError if it has no merges or the corpus no text.
    """
    from luthier.tokenizers.formats import load_tokenizer

    tokenizer, console = load_tokenizer(Path(path)), console or _console()
    if word is not None:
        _word(console, tokenizer, word)
    if report is not None:
        from luthier.core.show.tokenizer_report import show_report

        show_report(console, tokenizer, Path(report), column)
    if text is not None or (word is None and report is None):
        _facts(console, Path(path), tokenizer)
        _longest(console, tokenizer)
        _say(console, "\nyour text:" if text else "\na sample (give your own with --text):", "bold")
        _tokens(console, tokenizer, text or SAMPLE)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console


def _facts(console: Console, path: Path, tokenizer: Any) -> None:
    merges = getattr(tokenizer, "merges", None)
    kind = "a byte-level BPE tokenizer" if _is_byte_level(tokenizer) else f"a {type(tokenizer).__name__}"
    merged = "" if merges is None else f", {len(merges):,} merges"
    _say(console, f"{path}: {kind} of {tokenizer.vocab_size:,} ids{merged}\n")
    special = list(tokenizer.special_tokens.items())
    named = ", ".join(f"{token} {i}" for token, i in special[:SPECIAL])
    _say(console, f"special tokens  {len(special)}: {named}{', …' if len(special) > SPECIAL else ''}")
    if added := getattr(tokenizer, "added_tokens", None):
        _say(console, f"added tokens    {len(added)}: {', '.join(list(added)[:SPECIAL])}")
    if _is_byte_level(tokenizer):
        _say(console, f"pattern         {tokenizer.pattern}")
    _say(console, f"chat template   {'yes' if tokenizer.chat_template else 'none'}")
    lengths = Counter(map(len, _made_by_text(tokenizer)))
    spread = ", ".join(f"{n} bytes: {count:,}" for n, count in sorted(lengths.items())[:8])
    _say(console, f"tokens by size  {spread}{', …' if len(lengths) > 8 else ''}")


def _is_byte_level(tokenizer: Any) -> bool:
    from luthier.tokenizers.bpe import Tokenizer

    return isinstance(tokenizer, Tokenizer)


def _made_by_text(tokenizer: Any) -> list[bytes]:
    """The tokens but special ones."""
    special = set(tokenizer.special_tokens.values())
    return [token for i, token in enumerate(tokenizer.tokens) if token and i not in special]


def _word(console: Console, tokenizer: Any, word: str) -> None:
    """The merges of a word in order, and as trees."""
    from luthier.core.errors import InputError
    from luthier.core.show.merge_tree import draw_tree, grow, spelled
    from luthier.tokenizers.pretokenize import split

    if not _is_byte_level(tokenizer):
        raise InputError("--word draws merges, which only byte-level BPE has; --text shows how this tokenizer cuts it")
    for piece in split(word, tokenizer.pattern):
        data = piece.encode("utf-8")
        steps = grow(tokenizer, data)
        names = [spelled(tokenizer.tokens[node.id]) for node in steps[-1].nodes]
        _say(console, f"\n{spelled(data)}: {len(steps) - 1} merges make {len(names)} of {len(data)} bytes", "bold")
        _say(console, f"{'merge':>9}  {'joins':<24}the piece so far", "dim")
        _steps(console, tokenizer, steps)
        for node in steps[-1].nodes:
            _say(console, "")
            for line in draw_tree(tokenizer, node):
                _say(console, f"  {line}")
        whole = tokenizer.ids_of_bytes.get(data) if tokenizer.whole_pieces else None
        if whole is not None and len(names) > 1:
            _say(console, f"  but the piece is a token itself, id {whole}, and is taken whole")


def _steps(console: Console, tokenizer: Tokenizer, steps: Sequence[Step]) -> None:
    """A line for the bytes and one for each merge, with the token it made in brackets."""
    from luthier.core.show.merge_tree import spelled

    for step in steps:
        names = [spelled(tokenizer.tokens[node.id]) for node in step.nodes]
        made = ""
        if step.place >= 0:
            node = step.nodes[step.place]
            made = " + ".join(spelled(tokenizer.tokens[part.id]) for part in node.parts)
            names[step.place] = f"[{names[step.place]}]"
        rank = f"{step.nodes[step.place].rank:,}" if step.place >= 0 else ""
        _say(console, f"{rank:>9}  {made:<24}{' · '.join(names)}")


def _longest(console: Console, tokenizer: Any) -> None:
    longest = sorted(_made_by_text(tokenizer), key=lambda token: (-len(token), token))[:LONGEST]
    longest = [token if len(token) <= SHOWN else _head(token) for token in longest]
    _say(console, "\nlongest tokens:", "bold")
    console.print(coloured(longest, plain=not console.is_terminal), soft_wrap=True)


def _head(token: bytes) -> bytes:
    return f"{token[: SHOWN // 2].decode('utf-8', 'ignore')}… ({len(token)} bytes)".encode()


def _tokens(console: Console, tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, allowed_special="all")
    tokens = [tokenizer.tokens[i] for i in ids]
    console.print(coloured(tokens, plain=not console.is_terminal), soft_wrap=True)
    _say(console, "ids " + " ".join(f"{i}:{visible(token)}" for i, token in zip(ids, tokens, strict=True)))
    size = len(text.encode("utf-8"))
    _say(console, f"{len(ids):,} tokens, {size:,} bytes, {size / max(len(ids), 1):.2f} bytes a token")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, markup=False, style=style or None, soft_wrap=True)
