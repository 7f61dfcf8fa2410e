"""Ids of pieces to text, as sentencepiece does it.

The space that was put before the first word is taken off again. With remove_extra_whitespaces that goes on until there
is some text, one space from each piece; otherwise the first piece alone may lose one. A byte that belongs to no
character becomes one �, where Python's own decoder would join several.

A special token is written as it is spelled; sentencepiece leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from luthier.tokenizers.bpe_decode import Decoder

__all__ = ["PieceDecoder"]

CONTROL, BYTE, UNKNOWN = 3, 6, 2
_LONE = regex.compile(r"[\uDC80-\uDCFF]")


class PieceDecoder:
    """The bytes of all tokens, what kind each piece is, and which spaces are taken off at the start."""

    def __init__(self, tokens: Sequence[bytes], kinds: npt.NDArray[Any], normalizer: Any) -> None:
        self._tokens, self._kinds = tokens, kinds
        self._trim = bool(getattr(normalizer, "remove_extra_whitespaces", False))
        self._prefix = self._trim or bool(getattr(normalizer, "add_dummy_prefix", False))
        self.bytes = Decoder(tokens)

    def text(self, ids: Iterable[int] | npt.NDArray[Any], errors: str) -> str:
        """The text of the tokens; bytes that are not UTF-8 become � unless `errors` says otherwise."""
        if not isinstance(ids, (list, np.ndarray)):
            ids = list(ids)
        data = bytes(self.bytes.join(ids))
        cut, kept = self._leading(ids, data) if self._prefix else (0, b"")
        data = kept + data[cut:]
        if errors != "replace":
            return data.decode("utf-8", errors)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return _LONE.sub("\ufffd", data.decode("utf-8", "surrogateescape"))

    def _leading(self, ids: Sequence[int] | npt.NDArray[Any], data: bytes) -> tuple[int, bytes]:
        """How many bytes stand before the first text, and what to write for them: special tokens alone."""
        cut, kept = 0, b""
        for i in ids:
            kind, token = self._kinds[i], self._tokens[i]
            if kind == CONTROL:
                cut, kept = cut + len(token), kept + token
                continue
            if kind in (BYTE, UNKNOWN) or not data.startswith(b" ", cut):
                break
            cut += 1
            if not self._trim or len(token) > 1:
                break
        return cut, kept
