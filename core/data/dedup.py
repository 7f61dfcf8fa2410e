"""Repeats: the same document twice, or nearly, and a held-out part that has no near-copy in the training part.

Two documents are alike as far as their sets A and B of word 5-grams ("shingles") overlap, J = |A ∩ B| / |A ∪ B|.

All pairs would be quadratic. MinHash (Broder 1997) turns a set into a short signature: under one random hash function
the smallest hashes of A and B agree with probability exactly J. A signature of `PERMUTATIONS` such minima is cut into b
bands of r; two documents meet if one band agrees throughout, with probability 1 − (1 − Jʳ)ᵇ (locality-sensitive
hashing; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4). `bands` takes the longest r that still lets a
pair at the threshold meet with 99.99%. Whatever meets is then compared on the real sets, so that a false meeting costs
time and never a document.

Deterministic and blind to the order of reading: meeting is symmetric, the preference among copies is a total order
(longest, then newest, then the path), and a copy goes only if one that stays is like it. A chain A~B~C in which A and C
differ keeps A and C.

Splitting uses the same pairs at a lower similarity: whatever hangs together goes to one side together.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Copy", "Text", "bands", "clusters", "drop_copies", "jaccard", "shingles", "similar_pairs", "split"]

PERMUTATIONS = 128
SHINGLE = 5


@dataclass(frozen=True)
class Text:
    """What the comparison needs of a document. `modified` is ISO 8601, so that text order is time order."""

    path: str
    text: str
    modified: str = ""


@dataclass(frozen=True)
class Copy:
    """A document to drop: index of it and of the one that stays, how alike they are, and by which rule."""

    index: int
    kept: int
    similarity: float
    rule: str


# ---------------------------------------------------------------- similarity


def normalise(text: str) -> list[str]:
    """The words of a text as far as sameness goes: compatibility-composed, lower case, no punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str, n: int = SHINGLE) -> np.ndarray:
    """The set of word n-grams of `text` as sorted 64-bit hashes, uint64 [S]; a shorter text is one shingle.

    64 bits of BLAKE2: among a billion shingles the chance of one false match is 3%, each worth 1/S of a similarity.
    """
    words = normalise(text)
    if not words:
        return np.empty(0, np.uint64)
    grams = {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
    hashes = b"".join(hashlib.blake2b(gram.encode(), digest_size=8).digest() for gram in grams)
    return np.sort(np.frombuffer(hashes, dtype="<u8").astype(np.uint64))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted sets of hashes; 0 where either is empty."""
    if not len(a) or not len(b):
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def bands(threshold: float, recall: float = 0.9999) -> tuple[int, int]:
    """(b, r): the longest bands of a `PERMUTATIONS` signature that let a pair at `threshold` meet with `recall`."""
    for r in range(16, 1, -1):
        b = PERMUTATIONS // r
        if 1 - (1 - threshold**r) ** b >= recall:
            return b, r
    return PERMUTATIONS, 1


def similar_pairs(sets: Sequence[np.ndarray], threshold: float) -> dict[tuple[int, int], float]:
    """Pairs (i, j), i < j, of shingle sets with Jaccard similarity of at least `threshold`, and that similarity."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands(threshold))
    pairs = {}
    for j, values in enumerate(sets):
        if not len(values):
            continue
        signature = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)  # the shingles are hashes already
        signature.update_batch((values & np.uint64(0xFFFFFFFF)).tolist())
        for i in sorted(int(str(key)) for key in index.query(signature)):
            similarity = jaccard(sets[i], values)
            if similarity >= threshold:
                pairs[i, j] = similarity
        index.insert(j, signature)
    return pairs


# ---------------------------------------------------------------- dropping copies


def drop_copies(texts: Sequence[Text], threshold: float, sets: Sequence[np.ndarray] | None = None) -> list[Copy]:
    """The documents to drop: the same words as a kept one (`exact-duplicate`), or similar by at least `threshold`
    (`near-duplicate`). Kept is the longest, of equals the newest, of those the first by path. In order of index."""
    sets = [shingles(t.text) for t in texts] if sets is None else sets
    words = [hashlib.sha256(" ".join(normalise(t.text)).encode()).hexdigest() for t in texts]
    like: dict[int, dict[int, float]] = {}
    for (i, j), similarity in similar_pairs(sets, threshold).items():
        like.setdefault(i, {})[j] = similarity
        like.setdefault(j, {})[i] = similarity
    kept: set[int] = set()
    first: dict[str, int] = {}
    copies = []
    for index in _by_preference(texts):
        near = {k: s for k, s in like.get(index, {}).items() if k in kept}
        if words[index] in first:
            copies.append(Copy(index, first[words[index]], 1.0, "exact-duplicate"))
        elif near:
            closest = min(near, key=lambda k: (-near[k], texts[k].path))
            copies.append(Copy(index, closest, near[closest], "near-duplicate"))
        else:
            kept.add(index)
            first[words[index]] = index
    return sorted(copies, key=lambda c: c.index)


def _by_preference(texts: Sequence[Text]) -> list[int]:
    """Indices, the one to keep first. Sorting is stable, so keys go from the last to the first."""
    order = sorted(range(len(texts)), key=lambda i: (texts[i].path, texts[i].text))
    order.sort(key=lambda i: texts[i].modified, reverse=True)
    return sorted(order, key=lambda i: -len(texts[i].text))


# ---------------------------------------------------------------- splitting


def clusters(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Connected components: for each of `count` items the smallest index of its component (union-find)."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(count)]


def split(
    texts: Sequence[Text],
    fraction: float,
    threshold: float,
    *,
    forced: Sequence[bool] | None = None,
    sets: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> list[bool]:
    """Which documents are held out. Documents similar by at least `threshold` (directly or over others) go together.

    Clusters come in the order of a hash of their words; each is held out while the held-out characters stay within
    `fraction` of all. Where none fits, the smallest is taken, unless it is the only one. `forced` documents are held
    out with their cluster. Training keeps at least one cluster unless everything is forced.
    """
    if not texts:
        return []
    sets = [shingles(t.text) for t in texts] if sets is None else sets
    component = clusters(len(texts), list(similar_pairs(sets, threshold)))
    size: dict[int, int] = {}
    key: dict[int, str] = {}
    for index, (text, c) in enumerate(zip(texts, component, strict=True)):
        size[c] = size.get(c, 0) + len(text.text)
        digest = hashlib.sha256(f"{seed}\0".encode() + sets[index].tobytes() + text.path.encode()).hexdigest()
        key[c] = min(key.get(c, digest), digest)
    held = {c for index, c in enumerate(component) if forced is not None and forced[index]}
    budget = fraction * sum(size.values()) - sum(size[c] for c in held)
    free = sorted((c for c in size if c not in held), key=lambda c: key[c])
    for c in free:
        if size[c] <= budget and len(held) + 1 < len(size):
            held.add(c)
            budget -= size[c]
    if not held and fraction > 0 and len(free) > 1:
        held.add(min(free, key=lambda c: (size[c], key[c])))
    return [c in held for c in component]
