"""Vectors in the terminal and as a map: which tokens lie near each other.

Tokens of a tokenizer are shown as text: a word is looked up as the token that begins with its blank (`Ġwood`), as it
stands in a sentence, then as it is written, then in small letters. Where words are made of n-grams, a word that was
never seen has neighbours too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.artifacts import read_jsonl, read_manifest
from luthier.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from luthier.models.vectors import Vectors

__all__ = ["map_2d", "readable", "show_vectors"]

NEAREST = 8
EXAMPLES = 6  # words whose neighbours are shown where none is asked for
LONG = 6  # letters of such a word: short ones are mostly grammar
MOST = 20_000  # of the commonest tokens are looked at for the map and the examples


def show_vectors(folder: Path, near: Sequence[str] = (), analogy: Sequence[str] = ()) -> None:
    """Print what a vectors folder holds, the tokens nearest to the words of `near` (some common ones where none is
    given), and for `analogy` a b c what is nearest to a − b + c: `king man woman` asks for the queen.

    Raises InputError for a word without a vector or an analogy that is not of three words."""
    from luthier.models.vectors import load_vectors

    if len(analogy) not in (0, 3):
        raise InputError(f"--analogy takes three words, found {len(analogy)}: {' '.join(analogy)}")
    vectors = load_vectors(Path(folder))
    print("\n".join(_head(Path(folder), vectors)))
    asked = [(word, find(vectors, word)) for word in near]
    if not asked and not analogy:
        asked = [(t, vectors.tokens[row]) for t, row in readable(vectors) if len(t) >= LONG][:EXAMPLES]
    if asked:
        _table(vectors, "near", [(word, vectors.most_similar(token, topn=NEAREST)) for word, token in asked])
    if analogy:
        a, b, c = (find(vectors, word) for word in analogy)
        found = vectors.analogy(a, b, c, NEAREST)
        _table(vectors, "analogy", [(f"{analogy[0]} − {analogy[1]} + {analogy[2]}", found)])


def find(vectors: Vectors, word: str) -> str:
    """The token of a word as a person writes it. Raises InputError with the nearest spelling known."""
    tried = [word, word.lower()]
    if vectors.spelling == "byte-level":
        from luthier.tokenizers.formats import spell

        tried = [spell(f" {word}".encode()), word, spell(word.encode()), spell(f" {word.lower()}".encode())]
    for token in tried:
        if token in vectors:
            return token
    if vectors.spelling == "words" and 0 < vectors.ngram_sizes[0] <= len(word) + 2:  # with marks at its ends
        return word.lower()
    near = did_you_mean(word, [text for text, _ in readable(vectors)])
    split = "; a tokenizer may have split it into several" if vectors.spelling == "byte-level" else ""
    raise InputError(f"'{word}' has no vector{split}{near}")


def readable(vectors: Vectors) -> list[tuple[str, int]]:
    """(text, row) of the common tokens that are whole beginnings of words: letters only, three or more."""
    byte_level = vectors.spelling == "byte-level"
    found = []
    for row in range(min(len(vectors), MOST)):
        text = vectors.text(row)
        if text.startswith(" ") == byte_level and len(text.strip()) >= 3 and text.strip().isalpha():
            found.append((text.strip(), row))
    return found


def map_2d(vectors: Vectors, most: int) -> tuple[np.ndarray, list[str]]:
    """(float [N, 2], N labels): the `most` commonest readable tokens on the first two principal components of their
    unit vectors. Fewer than three such tokens give an empty map."""
    chosen = readable(vectors)[:most]
    if len(chosen) < 3:
        return np.zeros((0, 2)), []
    table = np.asarray(vectors.vectors[[row for _, row in chosen]], np.float64)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    u, s, _ = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    xy = np.zeros((len(chosen), 2))
    xy[:, : min(2, len(s))] = u[:, :2] * s[:2]
    # A component's sign is arbitrary; its largest entry is made positive, so that equal vectors give equal maps.
    signs = np.sign(xy[np.abs(xy).argmax(axis=0), [0, 1]])
    return xy * np.where(signs == 0, 1, signs), [text for text, _ in chosen]


# ---------------------------------------------------------------- printing


def _head(folder: Path, vectors: Vectors) -> Iterable[str]:
    kind = "tokens" if vectors.spelling == "byte-level" else "words"
    seen = int(vectors.counts.sum())
    yield f"{folder}: {len(vectors):,} vectors of {vectors.dim} numbers, of {kind} seen {seen:,} times in all"
    if (folder / "manifest.json").is_file() and (folder / "metrics.jsonl").is_file():
        settings = read_manifest(folder)["settings"]
        losses = [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")]
        yield f"{settings['method']}, window {settings['window']}: loss {losses[0]:.4f} → {losses[-1]:.4f}"


def _table(vectors: Vectors, title: str, rows: Sequence[tuple[str, list[tuple[str, float]]]]) -> None:
    """One line a word: its neighbours with their cosines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title, "nearest (cosine)", box=None, padding=(0, 1), header_style="bold", show_edge=False)
    for word, neighbours in rows:
        cells = (f"{_shown(vectors, vectors.row(token))} {score:.2f}" for token, score in neighbours)
        table.add_row(Text(word, style="bold"), Text("   ".join(cells)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    print()
    console.print(table)


def _shown(vectors: Vectors, row: int) -> str:
    """A token for human eyes: the blank before a word is not shown, any other stands as ␣."""
    text = vectors.text(row)
    text = text.removeprefix(" ") if text.strip() else text
    return "".join("␣" if c == " " else "↵" if c == "\n" else c if c.isprintable() else "�" for c in text)
