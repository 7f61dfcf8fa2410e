"""Batches: which tokens are trained together at a step.

Everything here is a function of (seed, epoch, position) and of nothing else. A run that was killed therefore needs to
know only its step to go on with exactly the tokens it would have seen; there is no loader to save.

**Windows** of a corpus. The documents of an epoch are put in a random order and joined to one ring of tokens, each
document ending with the end-of-text token; the ring is cut into windows, which come in a random order of their own:

    ring        … 7 4 4 9 ⏹ 3 8 1 1 2 ⏹ 5 …
    ids             4 4 9 ⏹ 3 8 1 1             what the model reads
    labels          4 9 ⏹ 3 8 1 1 2             what it shall say, one further on
    document        0 0 0 1 1 1 1 1             tokens of different documents do not see each other

A token belongs to the document of its *label*: the end-of-text token that closes one document is also the place from
which the next one's first token is predicted, so no label is lost, and that is how a document is measured too
(core/evaluation).

**Packs** of examples. Conversations are short and of unequal length. Padding each to the longest wastes a third of
the work; a pack lays several into one row, closed off from each other by `document`, the longest first into the
emptiest row (Graham 1969's rule), so that the rows end nearly even.

Legend: B rows, T tokens a row. Labels that are not trained are −100; padding has documents below 0, two of them, so
that neither is longer than a model reads where a row holds two conversations side by side (dpo.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "IGNORED",
    "Batch",
    "Example",
    "Mixture",
    "Windows",
    "chance",
    "mixed",
    "named",
    "pack",
    "padding",
    "split_rows",
]

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows trained together; `sources` name the documents or pairs they come from. `reference_BT` has log p of each
    label under another model, where an objective compares with one (dpo.py)."""

    ids_BT: Tensor
    labels_BT: Tensor
    document_BT: Tensor
    sources: tuple[Any, ...] = ()
    reference_BT: Tensor | None = None

    @property
    def trained(self) -> int:
        """Number of labels that count."""
        return int((self.labels_BT != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self if self.ids_BT.device == device else self._with(lambda tensor: tensor.to(device))

    def rows(self, part: slice) -> Batch:
        """Some of its rows."""
        return self._with(lambda tensor: tensor[part])

    def with_empty_rows(self, count: int) -> Batch:
        """`count` rows more, of which nothing is trained: token 0 as padding."""
        more = self._with(lambda tensor: tensor.new_zeros(count, tensor.shape[1]))
        more.labels_BT.fill_(IGNORED)
        more.document_BT[:] = torch.from_numpy(padding(more.document_BT.shape[1]))
        both = zip(self._tensors(), more._tensors(), strict=True)
        return replace(self, **{name: torch.cat([a, b]) for (name, a), (_, b) in both})

    def _tensors(self) -> list[tuple[str, Tensor]]:
        of = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [(name, value) for name, value in of if isinstance(value, Tensor)]

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: change(tensor) for name, tensor in self._tensors()})


@dataclass(frozen=True)
class Example:
    """A stretch of tokens to train on: `ids`, `labels`, `document` and, if there is one, `reference` of one length."""

    ids: np.ndarray
    labels: np.ndarray
    document: np.ndarray
    source: Any = None
    reference: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


def chance(*address: int) -> np.random.Generator:
    """The random generator that belongs to an address such as (seed, purpose, epoch)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(address)))


# ---------------------------------------------------------------- windows


class Windows:
    """Windows of `context` tokens over some of the documents of a token file, in endless epochs.

    `tokens` is one long array, document d is tokens[offsets[d]:offsets[d + 1]] and called names[d]; `chosen` are the
    documents to use. `number` keeps apart the random orders of several Windows of one run. `folder` and `lines`, the
    shards' folder and each document's line in the corpus, serve only to trace a window back (tracing.py).
    """

    def __init__(
        self,
        tokens: Any,
        offsets: np.ndarray,
        names: Sequence[str],
        chosen: np.ndarray,
        *,
        context: int,
        seed: int,
        number: int = 0,
        folder: Any = None,
        lines: np.ndarray | None = None,
    ) -> None:
        self.folder, self.lines = folder, lines
        lengths = offsets[1:] - offsets[:-1]
        self.tokens, self.starts, self.names, self.context, self.number = tokens, offsets[:-1], names, context, number
        self.chosen = chosen[lengths[chosen] > 0]
        self.lengths = lengths
        self.total = int(lengths[self.chosen].sum())
        self.count = -(-self.total // context)
        self._order = lru_cache(maxsize=2)(lambda epoch: self._shuffled(epoch, seed, number))

    def __len__(self) -> int:
        """Windows in one epoch; the last one runs on into the first, so that every token is seen."""
        return self.count

    def _shuffled(self, epoch: int, seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        documents = chance(seed, number, epoch, 0).permutation(self.chosen)
        windows = chance(seed, number, epoch, 1).permutation(self.count)
        return documents, np.cumsum(self.lengths[documents]), windows

    def __getitem__(self, position: int) -> Example:
        """The window at `position`, counted from the start of the run through all epochs."""
        document, number, belongs = self._places(position)
        tokens = self.tokens[self.starts[document] + number].astype(np.int64)
        belongs = belongs[1:]
        return Example(tokens[:-1], tokens[1:], belongs - belongs[0], tuple(self.names[d] for d in np.unique(document)))

    def _places(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each token of a window, and the one before: its document, its number in it, the document's in the ring."""
        documents, ends, windows = self._order(position // self.count)
        start = int(windows[position % self.count]) * self.context
        place = np.arange(start - 1, start + self.context)
        ring = place % self.total
        slot = np.searchsorted(ends, ring, side="right")
        document = documents[slot]
        number = ring - (ends[slot] - self.lengths[document])
        return document, number, slot + len(documents) * (place // self.total)

    def stretches(self, position: int) -> list[tuple[int, int, int]]:
        """(document, first, last + 1): the stretches of documents whose tokens are the labels of a window."""
        document, number, belongs = (part[1:] for part in self._places(position))
        cuts = [0, *(np.flatnonzero(np.diff(belongs)) + 1).tolist(), len(belongs)]
        return [(int(document[a]), int(number[a]), int(number[b - 1]) + 1) for a, b in pairwise(cuts)]


def mixed(first: Windows, second: Windows | None, share: float, position: int) -> Example:
    """Window `position` of a mixture in which `share` of all windows come from `second`, evenly spread."""
    if second is None or share <= 0:
        return first[position]
    before, after = int(position * share), int((position + 1) * share)
    return second[before] if after > before else first[position - before]


class Mixture:
    """Several kinds of windows in fixed shares (any positive numbers), evenly spread. Which window stands at a position
    is a closed formula: the last kind's share is dealt out against all others, then the one before, and so on."""

    def __init__(self, parts: Sequence[tuple[Windows, float]]) -> None:
        total = sum(share for _, share in parts)
        self.parts = [(windows, share / total) for windows, share in parts]

    def __getitem__(self, position: int) -> Example:
        """The window at `position`, counted from the start of the run."""
        windows, place = self.locate(position)
        return windows[place]

    def locate(self, position: int) -> tuple[Windows, int]:
        """Of which kind the window at `position` is, and which of them."""
        left = 1.0
        for windows, share in reversed(self.parts[1:]):
            of = share / left
            before, after = int(position * of), int((position + 1) * of)
            if after > before:
                return windows, before
            position, left = position - before, left - share
        return self.parts[0][0], position


# ---------------------------------------------------------------- rows


def pack(examples: Sequence[Example], row: int, pad_id: int) -> Batch:
    """Lay examples into as few rows of about `row` tokens as hold them."""
    longest = max(len(e) for e in examples)
    rows = max(1, -(-sum(len(e) for e in examples) // max(row, longest)))
    while True:
        filled = _fill(examples, rows)
        width = max(sum(len(examples[i]) for i in places) for places in filled)
        if width <= max(row, longest):
            break
        rows += 1
    ids = np.full((rows, width), pad_id, np.int64)
    labels, document = np.full_like(ids, IGNORED), np.empty_like(ids)
    reference = np.zeros(ids.shape, np.float32) if examples[0].reference is not None else None
    for b, places in enumerate(filled):
        at = number = 0
        for e in (examples[i] for i in places):
            span = slice(at, at + len(e))
            ids[b, span], labels[b, span], document[b, span] = e.ids, e.labels, e.document + number
            if reference is not None:
                reference[b, span] = e.reference
            at, number = at + len(e), number + int(e.document[-1]) + 1
        document[b, at:] = padding(width - at)
    tensors = [torch.from_numpy(array) for array in (ids, labels, document)]
    of_another = None if reference is None else torch.from_numpy(reference)
    return Batch(tensors[0], tensors[1], tensors[2], tuple(e.source for e in examples), of_another)


def padding(count: int) -> np.ndarray:
    """The documents of `count` tokens of padding: −1, and −2 from the middle on."""
    return np.where(np.arange(count) < (count + 1) // 2, -1, -2)


def _fill(examples: Sequence[Example], rows: int) -> list[list[int]]:
    """Which examples go to which row: the longest first, each into the emptiest row."""
    heap = [(0, b) for b in range(rows)]
    filled: list[list[int]] = [[] for _ in range(rows)]
    for i in sorted(range(len(examples)), key=lambda i: -len(examples[i])):
        load, b = heapq.heappop(heap)
        filled[b].append(i)
        heapq.heappush(heap, (load + len(examples[i]), b))
    return filled


def split_rows(batch: Batch, most: int) -> Iterator[Batch]:
    """Micro-batches of at most `most` rows; 0 leaves the batch whole."""
    rows = len(batch.ids_BT)
    for i in range(0, rows, most or rows):
        yield batch.rows(slice(i, i + (most or rows)))


def named(batch: Batch, most: int = 12) -> str:
    """The documents of a batch in words: the first names, and how many more there are."""
    names = [str(name) for source in batch.sources for name in (source if isinstance(source, tuple) else (source,))]
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "unknown"
