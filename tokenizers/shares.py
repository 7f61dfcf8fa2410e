r"""Texts shared out among threads.

Many short texts go together in one call, since a call costs more than they do. A long text is cut after a line feed
where every known pattern begins a piece, whatever else stands around:

    GPT-4's and its kin     … end of line. ⏎ ⏎ | Next …     white space up to its last line feed is in one piece
    GPT-2's                 … end of line. ⏎ | ⏎ Next …     the last character of white space is a piece of its own

So the ids of the parts, joined, are those of the whole, and one book keeps all threads busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.pretokenize import PATTERNS

__all__ = ["SMALLEST", "encode_in_batches", "share_out"]

Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]  # ids, and where each text starts in them

SMALLEST: Final = 1 << 16  # characters of a share
BATCH: Final = 1024  # texts encoded in one go on one thread
PER_THREAD: Final = 4  # shares, so that none waits long for the slowest


def share_out(texts: Sequence[str], num_threads: int, pattern: str) -> tuple[list[list[str]], list[int]]:
    """Shares of about equal length, and for each text the number of parts up to its end. Long texts are cut if
    `pattern` is known by name."""
    size = max(SMALLEST, sum(map(len, texts)) // (PER_THREAD * num_threads) + 1)
    shares: list[list[str]] = [[]]
    ends, parts, filled = [], 0, 0
    for text in texts:
        for part in _parts(text, size, pattern) if len(text) > size and pattern in PATTERNS else (text,):
            if filled >= size:
                shares.append([])
                filled = 0
            shares[-1].append(part)
            filled += len(part)
            parts += 1
        ends.append(parts)
    return shares, ends


def encode_in_batches(encode: Callable[[Sequence[str]], Encoded], texts: Sequence[str], num_threads: int) -> Encoded:
    """What `encode` gives for all texts, some at a time."""
    step = max(1, -(-len(texts) // (8 * num_threads))) if num_threads > 1 else BATCH
    batches = [texts[i : i + step] for i in range(0, len(texts), step)]
    if num_threads > 1 and len(batches) > 1:
        with ThreadPoolExecutor(num_threads) as pool:
            parts = list(pool.map(encode, batches))
    else:
        parts = list(map(encode, batches))
    ids, offsets = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
    for part, starts in parts:
        ids.append(part)
        offsets.append(starts[1:] + offsets[-1][-1])
    return np.concatenate(ids), np.concatenate(offsets)


def _parts(text: str, size: int, pattern: str) -> Iterator[str]:
    start = 0
    while len(text) - start > size and (cut := _next_cut(text, start + size, pattern)):
        yield text[start:cut]
        start = cut
    yield text[start:]


def _next_cut(text: str, place: int, pattern: str) -> int:
    """The first place to cut at or after `place`; 0 where there is none."""
    while place := text.find("\n", place) + 1:
        if pattern not in ("gpt2", "smollm"):
            if text[place : place + 1].isalpha():
                break
        elif place > 1 and not text[place - 2].isspace():
            after = text[place : place + 2]
            if after[:1].isalpha() or (after[:1] == "\n" and after[1:].isalpha()):
                break
    return place
