r"""Texts shared out among threads.

Many short texts go together in one call, since a call costs more than they do. A long text is cut where every known
pattern begins a piece whatever else stands around: between a line feed after something that is not white space, and a
letter.

    "…end of line." ⏎ | "Next line…"      cut here: no piece holds ⏎ and N, and none looks past the cut

So the ids of the parts, joined, are those of the whole, and one book keeps all threads busy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import regex

__all__ = ["SMALLEST", "share_out"]

SMALLEST: Final = 1 << 16  # characters of a share
PER_THREAD: Final = 4  # shares, so that none waits long for the slowest
_CUT: Final = regex.compile(r"(?<=\S\n)(?=\p{L})")


def share_out(texts: Sequence[str], num_threads: int, *, cut: bool) -> tuple[list[list[str]], list[int]]:
    """Shares of about equal length, and for each text the number of parts up to its end. `cut`: long texts may be."""
    size = max(SMALLEST, sum(map(len, texts)) // (PER_THREAD * num_threads) + 1)
    shares: list[list[str]] = [[]]
    ends, parts, filled = [], 0, 0
    for text in texts:
        for part in _parts(text, size) if cut and len(text) > size else (text,):
            if filled >= size:
                shares.append([])
                filled = 0
            shares[-1].append(part)
            filled += len(part)
            parts += 1
        ends.append(parts)
    return shares, ends


def _parts(text: str, size: int) -> Iterator[str]:
    start = 0
    while len(text) - start > size and (place := _CUT.search(text, start + size)):
        yield text[start : place.start()]
        start = place.start()
    yield text[start:]
