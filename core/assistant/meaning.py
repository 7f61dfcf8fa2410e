"""Sentences as vectors, so that what is said in other words is found too.

The index keeps a copy of the words' vectors and of the tokenizer whose ids they belong to, so that it needs nothing
beside it. A sentence's vector is the smooth inverse frequency average of Arora, Liang & Ma 2017 (models/vectors.py),
without the direction that all sentences share, at length 1: a dot product of two is their cosine, and the nearest ones
are found exactly by one matrix product a block.

    N sentences, B sentences a block, D dimensions
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import InputError

if TYPE_CHECKING:
    from luthier.models.vectors import Vectors
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["Meaning", "keep"]

VECTORS, TOKENIZER = "vectors", "tokenizer"


def keep(folder: Path, vectors: Path, tokenizer: Path | None) -> None:
    """Copy into `folder` what a `Meaning` needs. The tokenizer is left out for vectors of words.

    Raises InputError for vectors of tokens without their tokenizer, or with another one: the ids would be other words.
    """
    from luthier.models.vectors import Vectors, load_vectors

    v = load_vectors(vectors)
    (folder / VECTORS).mkdir(exist_ok=True)
    Vectors(v.vectors, v.tokens, v.ids, v.counts, None, v.spelling).save(folder / VECTORS)
    if v.spelling != "words":
        from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

        if tokenizer is None:
            raise InputError(
                f"{vectors} holds vectors of tokens, not of words\nGive --tokenizer, the one they belong to."
            )
        t = load_tokenizer(tokenizer)
        if not _belong(v, t):
            raise InputError(
                f"{vectors} belongs to another tokenizer than {tokenizer}\n"
                "Give the one that its shards were encoded with."
            )
        (folder / TOKENIZER).mkdir(exist_ok=True)
        save_tokenizer(t, folder / TOKENIZER)


def _belong(vectors: Vectors, tokenizer: Tokenizer) -> bool:
    """Whether every vector's id is, in this tokenizer, the token that the vector is named after."""
    from luthier.tokenizers.formats import spell

    tokens = tokenizer.tokens
    return all(
        i < len(tokens) and name in (spell(tokens[i]), tokens[i].decode("utf-8", "replace"))
        for i, name in zip(map(int, vectors.ids), vectors.tokens, strict=True)
    )


class Meaning:
    """Text to vector. `common_D` is the direction to leave out, found by `fit`."""

    def __init__(self, folder: Path, common_D: np.ndarray | None = None) -> None:
        from luthier.models.vectors import load_vectors

        self.vectors: Vectors = load_vectors(folder / VECTORS)
        self.tokenizer: Tokenizer | None = None
        self.common_D = common_D
        if (folder / TOKENIZER).is_dir():
            from luthier.tokenizers.formats import load_tokenizer

            self.tokenizer = load_tokenizer(folder / TOKENIZER)

    def fit(self, texts: Sequence[str]) -> np.ndarray:
        """Find the common direction of all `texts`; returns their unit vectors [N, D]."""
        rows_ND, self.common_D = self.vectors.sentence_vectors([self._words(text) for text in texts])
        return _unit(rows_ND)

    def encode(self, text: str) -> np.ndarray:
        """The unit vector [D] of one text; zeros if no word of it is known."""
        return _unit(self.vectors.sentence_vector(self._words(text), common=self.common_D)[None])[0]

    def _words(self, text: str) -> Any:
        if self.tokenizer is not None:
            return self.tokenizer.encode_ordinary(f" {text}")
        words = re.findall(r"[^\W_]+(?:[-’'][^\W_]+)*", text)
        return [word if word in self.vectors else word.lower() for word in words]


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return (rows_ND / np.where(norms_N1 > 1e-6, norms_N1, 1.0)).astype(np.float32)
