r"""Texts shared out among threads.

Many short texts go together in one call, since a call costs more than they do; but no more than what the processor's
cache holds, since new memory costs more than a call. For several threads a long text is cut after a line feed where
every known pattern begins a piece, whatever else stands around:

    GPT-4's and its kin     … end of line. ⏎ ⏎ | Next …     white space up to its last line feed is in one piece
    GPT-2's                 … end of line. ⏎ | ⏎ Next …     the last character of white space is a piece of its own

So the ids of the parts, joined, are those of the whole, and one book keeps all threads busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.pretokenize import RULES, utf8

__all__ = ["LARGEST", "Share", "encode_in_batches", "in_threads", "joined", "share_out"]

Encoded = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]  # ids, and where each text starts in them
Share = list[str] | npt.NDArray[np.uint8]  # texts, or the bytes of a part of one

SMALLEST: Final = 1 << 16  # characters of a share
LARGEST: Final = 1 << 18  # more are in it only where one text has more
BATCH: Final = 1024  # texts encoded in one go on one thread
PER_THREAD: Final = 16  # shares, so that none waits long for the slowest
WINDOW: Final = 1 << 12  # bytes in which the next line feed is looked for


def share_out(texts: list[str], num_threads: int, pattern: str) -> tuple[list[Share], Sequence[int]]:
    """Shares of about equal length, and for each text the number of parts up to its end. For several threads long texts
    are cut if `pattern` is known by name; their parts are bytes. Raises TextError."""
    sizes = np.fromiter(map(str.__len__, texts), np.int64, len(texts))  # a subclass may say another
    filled = np.cumsum(sizes)
    size = max(SMALLEST, min(LARGEST, int(sizes.sum()) // (PER_THREAD * num_threads) + 1))
    long = np.flatnonzero(sizes > size).tolist() if num_threads > 1 and pattern in RULES else []
    shares: list[Share] = []
    parts, begin = np.ones(len(texts), np.int64), 0
    for stop in (*long, len(texts)):
        while begin < stop:
            full = int(np.searchsorted(filled, filled[begin] - sizes[begin] + size)) + 1
            shares.append(texts[begin : min(full, stop)])
            begin = min(full, stop)
        if stop < len(texts):
            shares += (cut := [*_parts(utf8(texts[stop]), size, pattern)])
            parts[stop], begin = len(cut), stop + 1
    return shares, np.cumsum(parts).tolist()


def in_threads(encode: Callable[[Any], Encoded], shares: Sequence[Any], num_threads: int) -> list[Encoded]:
    """What `encode` gives for each share. The calling thread works, too: it takes long until another one has begun."""
    done: list[Any] = [None] * len(shares)
    numbers = iter(range(len(shares)))  # the next one is taken under Python's lock

    def work() -> None:
        try:
            for k in numbers:
                done[k] = encode(shares[k])
        except BaseException:
            deque(numbers, 0)  # nobody needs to go on
            raise

    with ThreadPoolExecutor(max(1, num_threads - 1)) as pool:
        others = [pool.submit(work) for _ in range(min(num_threads, len(shares)) - 1)]
        work()
        for other in others:
            other.result()
    return done


def joined(done: Sequence[Encoded], ends: Sequence[int]) -> Encoded:
    """What the shares gave, as if the texts had been encoded in one go."""
    sizes = np.concatenate([np.empty(0, np.int64), *(np.diff(starts) for _, starts in done)])
    offsets = np.append(0, np.cumsum(sizes))
    return np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in done)]), offsets[np.array([0, *ends])]


def encode_in_batches(encode: Callable[[Sequence[str]], Encoded], texts: Sequence[str], num_threads: int) -> Encoded:
    """What `encode` gives for all texts, some at a time."""
    step = max(1, -(-len(texts) // (8 * num_threads))) if num_threads > 1 else BATCH
    batches = [texts[i : i + step] for i in range(0, len(texts), step)]
    parts = in_threads(encode, batches, num_threads) if num_threads > 1 else list(map(encode, batches))
    return joined(parts, range(1, len(texts) + 1))


def _parts(data: npt.NDArray[np.uint8], size: int, pattern: str) -> Iterator[npt.NDArray[np.uint8]]:
    start = 0
    while len(data) - start > size and (cut := _next_cut(data, start + size, pattern)):
        yield data[start:cut]
        start = cut
    yield data[start:]


def _next_cut(data: npt.NDArray[np.uint8], place: int, pattern: str) -> int:
    """The first place to cut at or after `place`; 0 where there is none."""
    while place < len(data):
        for found in np.flatnonzero(data[place : place + WINDOW] == ord("\n")).tolist():
            cut = place + found + 1
            after, before = _text(data[cut : cut + 5]), _text(data[max(cut - 5, 0) : cut - 1])
            if pattern not in ("gpt2", "smollm"):
                if after[:1].isalpha():
                    return cut
            elif before and not before[-1].isspace() and after.removeprefix("\n")[:1].isalpha():
                return cut
        place += WINDOW
    return 0


def _text(data: npt.NDArray[np.uint8]) -> str:
    """The characters that are whole in a few bytes."""
    return data.tobytes().decode("utf-8", "ignore")
