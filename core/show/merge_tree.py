"""How a word is put together: the merges in the order in which they are made, and the tree they grow into.

BPE joins from the bytes up (see tokenizers/bpe.py). What is drawn for ` sounds`:

    merge        the piece so far
                 ␣·s·o·u·n·d·s
      12  o+u    ␣·s·[ou]·n·d·s             the earliest learned merge that fits, then the next …
     103  ou+n   ␣·s·[oun]·d·s

    ␣sounds                                 and which token consists of which, each with id and merge
    ├─ ␣s   id 260, merge 9
    │  ├─ ␣
    …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from luthier.core.show.shards import visible

if TYPE_CHECKING:
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["Node", "Step", "draw_tree", "grow", "spelled"]


@dataclass(frozen=True)
class Node:
    """A token in the tree: its id, the rank of the merge that made it (−1: a byte) and what it was made of."""

    id: int
    rank: int = -1
    parts: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Step:
    """The piece after a merge: its tokens, and the place of the new one (−1: none yet)."""

    nodes: tuple[Node, ...]
    place: int = -1


def grow(tokenizer: Tokenizer, piece: bytes) -> list[Step]:
    """Every step from the bytes of `piece` to its tokens, as `encode_by_the_book` takes them."""
    nodes = [Node(tokenizer.ids_of_bytes[bytes([b])]) for b in piece]
    steps = [Step(tuple(nodes))]
    while True:
        found = [
            (*tokenizer.ranks[a.id, b.id], i)
            for i, (a, b) in enumerate(pairwise(nodes))
            if (a.id, b.id) in tokenizer.ranks
        ]
        if not found:
            return steps
        rank, new, i = min(found)
        nodes[i : i + 2] = [Node(new, rank, (nodes[i], nodes[i + 1]))]
        steps.append(Step(tuple(nodes), i))


def draw_tree(tokenizer: Tokenizer, node: Node) -> Iterator[str]:
    """The lines of a token's tree."""
    yield _named(tokenizer, node)
    yield from _branches(tokenizer, node.parts, "")


def _branches(tokenizer: Tokenizer, parts: Sequence[Node], margin: str) -> Iterator[str]:
    for number, part in enumerate(parts, 1):
        last = number == len(parts)
        yield f"{margin}{'└─' if last else '├─'} {_named(tokenizer, part)}"
        yield from _branches(tokenizer, part.parts, margin + ("   " if last else "│  "))


def _named(tokenizer: Tokenizer, node: Node) -> str:
    if node.rank < 0:
        return spelled(tokenizer.tokens[node.id])
    return f"{spelled(tokenizer.tokens[node.id])}   id {node.id}, merge {node.rank:,}"


def spelled(token: bytes) -> str:
    """A token on one line, a blank as ␣, a part of a character in hexadecimal."""
    return visible(token).replace("\n", "").replace(" ", "␣")
