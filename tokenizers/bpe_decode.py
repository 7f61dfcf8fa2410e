"""Decoding: ids to text, by copying each token's bytes from one long row of bytes.

    row      … t h e ␣ q u i c k …        every token's bytes, one token behind the other
    starts   [V + 1]                      token i is row[starts[i] : starts[i + 1]]

`join_by_the_book` says what is wanted. The fast path adds up the sizes first, so that the result is made once and in
its full length, and copies then. A token has about four bytes; for so few, sixteen at a time by one vector load and one
store beat any loop over bytes: what is written too much, the next token writes over. So the row ends, and the result
is made, with sixteen bytes to spare.

A token may end inside a character: `ß` is two bytes, and a model may say one without the other. Whoever shows ids as
they come must wait for the rest. `stream` does, and what it yields, joined, is what decoding everything at once gives.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.machine_code import Code

if TYPE_CHECKING:
    from luthier.tokenizers.instructions import move_16

__all__ = ["Decoder", "TokenIdError", "join_by_the_book"]

_code = Code(__name__)
WIDTH: Final = 16  # bytes copied at once
FEW: Final = 40  # ids; for so few, Python itself is as fast


class TokenIdError(ValueError):
    """An id that the tokenizer does not have."""


def join_by_the_book(tokens: Sequence[bytes], ids: Iterable[int]) -> bytes:
    """The bytes of the tokens, one behind the other."""
    return b"".join(tokens[i] for i in ids)


class Decoder:
    """The tokens of a vocabulary, laid out for copying."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._or_none = [*tokens, *[None] * len(tokens)]  # where an id below 0 finds None too
        self._row = np.frombuffer(b"".join(tokens) + bytes(WIDTH), np.uint8)
        self._starts = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, tokens), np.int64, len(tokens)), out=self._starts[1:])

    def sizes(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Bytes of each token."""
        return self._starts[ids + 1] - self._starts[ids]

    def join(self, ids: Iterable[int] | npt.NDArray[Any]) -> bytes | memoryview:
        """The bytes of the tokens. Raises TokenIdError for an id out of range or no whole number."""
        if not isinstance(ids, (list, np.ndarray)):
            ids = np.asarray(ids) if hasattr(ids, "__array__") else list(ids)
        if len(ids) <= FEW:
            return self._join_few(ids.tolist() if isinstance(ids, np.ndarray) else ids)
        try:
            numbers = _whole_numbers(ids)
        except (TypeError, OverflowError):  # what is wrong in a list
            return self._join_few(list(ids))
        size = _size(numbers, self._starts)
        if size < 0:
            raise self._no_token(ids[-1 - size], -1 - size)
        joined = np.empty(size + WIDTH, np.uint8)
        _copy(numbers, self._row, self._starts, joined)
        return joined[:size].data

    def _join_few(self, ids: list[int]) -> bytes:
        try:
            return b"".join(map(self._or_none.__getitem__, ids))
        except (IndexError, TypeError):
            for place, i in enumerate(ids):
                if not isinstance(i, (int, np.integer)):
                    raise TokenIdError(f"ids are whole numbers in a row, not {i!r} (at position {place})") from None
                if not 0 <= i < len(self._starts) - 1:
                    raise self._no_token(i, place) from None
            raise

    def _no_token(self, i: Any, place: int) -> TokenIdError:
        last = len(self._starts) - 2
        return TokenIdError(f"id {i} at position {place} is out of range: the tokenizer has ids 0 to {last}")

    def text(self, ids: Iterable[int] | npt.NDArray[Any], errors: str) -> str:
        """The text of the tokens; bytes that are not UTF-8 as `errors` says."""
        return str(self.join(ids), "utf-8", errors)

    def stream(self, ids: Iterable[int], errors: str) -> Iterator[str]:
        """The text of ids that come one by one, as soon as its characters are whole."""
        characters = codecs.getincrementaldecoder("utf-8")(errors)
        for i in ids:
            if text := characters.decode(self._join_few([i])):
                yield text
        if rest := characters.decode(b"", final=True):
            yield rest


def _whole_numbers(ids: list[int] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The ids as int32 or int64: the loops below are compiled for these two and no more."""
    if isinstance(ids, list):
        # The fastest way from Python's numbers to the processor's; a fraction is a TypeError.
        return np.frombuffer(array("I", ids), np.int32)
    kind = ids.dtype
    if ids.ndim != 1 or kind.kind not in "iu":
        raise TokenIdError(f"ids are whole numbers in a row, not {kind} in {ids.ndim} dimensions")
    small = kind.itemsize < 4 or (kind.itemsize == 4 and kind.kind == "i")
    return np.ascontiguousarray(ids, np.int32 if small else np.int64)


@_code.outer
def _size(ids, starts):
    """Bytes of all tokens; for an id out of range, -1 - its place."""
    size, count = np.int64(0), np.uint64(len(starts) - 1)
    for k in range(len(ids)):
        i = np.uint64(ids[k])
        if i >= count:
            return -1 - k
        size += starts[i + np.uint64(1)] - starts[i]
    return size


@_code.outer
def _copy(ids, row, starts, joined):
    """Write the bytes of all tokens to `joined`, and up to WIDTH bytes too many."""
    o = np.int64(0)
    for k in range(len(ids)):
        i = np.uint64(ids[k])
        begin, end = starts[i], starts[i + np.uint64(1)]
        move_16(row, begin, joined, o)
        for more in range(WIDTH, end - begin, WIDTH):
            move_16(row, begin + more, joined, o + more)
        o += end - begin
