"""A first embedding from word vectors.

A model's embedding [V, C] usually starts as noise, and the first thing it learns is which tokens are alike. Vectors
trained on the same tokens (`luthier train-vectors`) know that already. To start from them:

1. centre them, and turn them onto their principal components: X = U S Vᵀ, rows X V. The first C columns hold as much of
   their spread as C columns can. With fewer dimensions than C the rest stays noise.
2. scale all to the spread the initializer would have given, so that no layer sees larger numbers than it expects.

Tokens without a vector (special tokens, tokens that never occurred) keep their random start.

**New rows of a trained embedding** (an extended tokenizer's) can start from vectors too, if both old and new tokens
have one: the linear map that best sends the old tokens' vectors to their rows, least squares with a small ridge (as
Mikolov et al. 2013, arXiv:1309.4168, map one language's vectors to another's), sends the new tokens' vectors to theirs.
Without vectors they start at the mean of the pieces that they replace (models/resize.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from luthier.models.transformer import Transformer
    from luthier.models.vectors import Vectors

__all__ = ["principal_components", "start_embedding", "start_grown", "start_new_rows"]

RIDGE = 1e-2  # of the mean square of the vectors' columns


def principal_components(vectors: np.ndarray, columns: int) -> np.ndarray:
    """The rows of `vectors` [N, D], centred, on their first min(columns, D, N) principal components."""
    centred = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(centred.T @ centred)
    return centred @ axes[:columns].T


@torch.no_grad()
def start_embedding(weight_VC: torch.Tensor, vectors: Vectors) -> int:
    """Put `vectors` into the embedding `weight_VC`, in place; returns the number of tokens that got one (on the device
    "meta": that would)."""
    ids = np.asarray(vectors.ids, np.int64)
    known = np.flatnonzero((ids >= 0) & (ids < len(weight_VC)))
    if not len(known) or weight_VC.is_meta:
        return len(known)
    spread = float(weight_VC.std())
    turned = principal_components(np.asarray(vectors.vectors, np.float64)[known], weight_VC.shape[1])
    turned *= spread / max(float(np.sqrt((turned**2).mean())), 1e-12)
    rows = torch.from_numpy(ids[known])
    weight_VC[rows, : turned.shape[1]] = torch.from_numpy(turned).to(weight_VC.dtype)
    return len(known)


@torch.no_grad()
def start_new_rows(weight_VC: torch.Tensor, vectors: Vectors, new: Sequence[int]) -> int:
    """Start the rows `new` of a trained embedding from `vectors`, in place; returns how many have a vector. The other
    rows and their vectors teach the map; with none of them nothing is changed."""
    ids = np.asarray(vectors.ids, np.int64)
    inside = (ids >= 0) & (ids < len(weight_VC))
    fresh = np.isin(ids, np.asarray(list(new), np.int64))
    known, asked = np.flatnonzero(inside & ~fresh), np.flatnonzero(inside & fresh)
    if not len(known) or not len(asked):
        return 0
    table = np.asarray(vectors.vectors, np.float64)
    rows = weight_VC[torch.from_numpy(ids[known])].double().numpy(force=True)
    x, y = table[known] - table[known].mean(axis=0), rows - rows.mean(axis=0)
    gram = x.T @ x
    gram += np.eye(len(gram)) * RIDGE * np.trace(gram) / len(gram)
    mapped = (table[asked] - table[known].mean(axis=0)) @ np.linalg.solve(gram, x.T @ y)
    # A fit is smaller than what it fits; new rows get the old ones' spread.
    mapped *= y.std() / max(float(np.sqrt((mapped**2).mean())), 1e-12)
    weight_VC[torch.from_numpy(ids[asked])] = torch.from_numpy(mapped + rows.mean(axis=0)).to(weight_VC)
    return len(asked)


def start_grown(model: Transformer, vectors: Vectors, known: int) -> int:
    """Start the rows of a model's ids from `known` on from vectors, in its embedding and, if not tied to it, its head;
    returns how many have a vector."""
    new = range(known, len(model.embed_tokens.weight))
    if not model.config.tie_word_embeddings:
        start_new_rows(model.lm_head.weight, vectors, new)
    return start_new_rows(model.embed_tokens.weight, vectors, new)
