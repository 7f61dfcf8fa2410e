"""The plain twin of word2vec_fast.py: the same arguments, the same chance, the same vectors up to rounding, to be read.

`kept` are the words of a piece without those thinned out, `ends` where its documents end; `model`, `room`, `log` as in
word2vec_fast.py. `state` is the stream of chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["walk_plain"]


def walk_plain(
    kept: np.ndarray, ends: np.ndarray, a: int, b: int, model: Any, room: Any, log: Any, rate: float, end_rate: float,
    state: int,
) -> tuple:  # fmt: skip
    """Train on the words kept[a:b]; see `walk`."""
    table, state, used, loss, measured, pairs = model.table, int(state), 0, 0.0, 0, 0

    def uniform() -> float:
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 11) / 2**53

    def noise() -> int:
        slot = uniform() * len(model.keep)
        both = model.noise[int(slot)]
        return int(slot) if slot % 1 < both % 1 else int(both)

    def targets(word: int, drawn: list[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Rows of the table, their labels, and 1 where they count: the word itself is no noise."""
        ids = [word, *drawn] if drawn else []
        rows, labels = [model.contexts + t for t in ids], [1.0] + [0.0] * len(drawn) if ids else []
        counts = [1.0] + [float(t != word) for t in drawn] if ids else []
        if len(model.nodes):
            path = slice(model.node_offsets[word], model.node_offsets[word + 1])
            rows, labels = rows + model.nodes[path].tolist(), labels + model.turns[path].tolist()
        return rows, np.array(labels, np.float32), np.array(counts + [1.0] * (len(rows) - len(ids)), np.float32)

    def parts(word: int) -> np.ndarray:
        return model.parts[slice(*model.part_offsets[word : word + 2])] if len(model.parts) else np.array([word])

    by_pair = model.skipgram and model.shared == 0
    draw = lambda: [noise() for _ in range(model.negative)]  # noqa: E731
    ring: dict[int, np.ndarray] = {}
    before: dict[int, np.ndarray] = {}

    def leave(left: list[int]) -> None:
        nonlocal used
        for j in left:
            gain, word = ring.pop(j) - before.pop(j), int(kept[j])
            if len(log.where):
                log.where[used], log.rows[used] = (-1 - word if len(model.parts) else word), gain
                used += 1
            else:
                np.add.at(table, parts(word), gain)

    drawn = draw() if a < b and not by_pair else []
    for i in range(a, b):
        document = np.searchsorted(ends, i, "right")
        low, high = (int(ends[document - 1]) if document else 0), int(ends[document])
        leave([j for j in ring if not max(low, i - model.window) <= j])
        for j in range(max(low, i - model.window), min(high, i + model.window + 1)):
            if j not in ring:
                ring[j] = table[parts(int(kept[j]))].mean(axis=0)
                before[j] = ring[j].copy()
        reach = 1 + int(uniform() * model.window)
        near = [j for j in range(max(low, i - reach), min(high, i + reach + 1)) if j != i]
        ahead = drawn
        if not by_pair and i + 1 < b and (i + 1 - a) % model.shared == 0:
            ahead = draw()
        step_rate = rate + (end_rate - rate) * i / len(kept)
        groups = [[j] for j in near] if by_pair else [near] if near else []
        for group in groups:
            rows, labels, counts = targets(int(kept[i]), draw() if by_pair else drawn)
            X, T = np.stack([ring[j] for j in group]), table[rows]
            if not model.skipgram:
                X = X.mean(axis=0, keepdims=True) if model.mean else X.sum(axis=0, keepdims=True)
            error = 1 / (1 + np.exp(-np.clip(X @ T.T, -8, 8))) - labels
            step = (-step_rate * error * counts).astype(np.float32)
            for k, gain in enumerate(step.T @ X):
                if len(log.where):
                    log.where[used], log.rows[used] = rows[k], gain
                    used += 1
                else:
                    table[rows[k]] += gain
            moves = step @ T
            for n, j in enumerate(group):
                ring[j] += moves[n] if model.skipgram else moves[0] / (1 if model.mean else len(group))
        pairs += len(near)
        if i % 16 == 0 and near:
            loss -= float((np.log(1 - np.minimum(np.abs(error), 0.9999)) * counts).sum())
            measured += len(error)
        drawn = ahead
    leave(list(ring))
    return loss, measured, pairs, used, np.uint64(state)
