"""The plain twin of word2vec_fast.py, to be read: the same arguments, the same chance, the same vectors up to rounding.

`kept` are the words of a piece without those thinned out, `ends` where its documents end; `model` as in
word2vec_fast.py. `state` is the stream of chance, here in a list of one so that functions can go on with it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["walk_plain"]


def walk_plain(kept, ends, a, b, model, room, rate, end_rate, state):
    """Train on the words kept[a:b]; see `walk`."""
    m, chance, loss, measured, pairs = model, [int(state)], 0.0, 0, 0
    ring, before, by_pair = {}, {}, model.skipgram and model.shared == 0

    def draw():
        slots = [_uniform(chance) * len(m.keep) for _ in range(m.negative)]
        return [int(s) if s % 1 < m.noise[int(s)] % 1 else int(m.noise[int(s)]) for s in slots]  # or its other word

    def leave(j):
        np.add.at(m.table, _parts(m, int(kept[j])), ring.pop(j) - before.pop(j))

    drawn = draw() if a < b and not by_pair else []
    for i in range(a, b):
        document = np.searchsorted(ends, i, "right")
        low, high = (int(ends[document - 1]) if document else 0), int(ends[document])
        for j in [j for j in ring if j < max(low, i - m.window)]:
            leave(j)
        for j in range(max(low, i - m.window), min(high, i + m.window + 1)):
            if j not in ring:
                ring[j], before[j] = (m.table[_parts(m, int(kept[j]))].mean(axis=0) for _ in range(2))
        reach = 1 + int(_uniform(chance) * m.window)
        near = [j for j in range(max(low, i - reach), min(high, i + reach + 1)) if j != i]
        ahead = draw() if not by_pair and i + 1 < b and (i + 1 - a) % m.shared == 0 else drawn
        for group in [[j] for j in near] if by_pair else [near] if near else []:
            rows, labels, counts = _targets(m, int(kept[i]), draw() if by_pair else drawn)
            X, T = np.stack([ring[j] for j in group]), m.table[rows]
            if not m.skipgram:
                X = (X.mean if m.mean else X.sum)(axis=0, keepdims=True)
            error = 1 / (1 + np.exp(-np.clip(X @ T.T, -8, 8))) - labels
            step = (-(rate + (end_rate - rate) * i / len(kept)) * error * counts).astype(np.float32)
            np.add.at(m.table, rows, step.T @ X)
            for j, move in zip(group, np.broadcast_to(step @ T, (len(group), X.shape[1])), strict=True):
                ring[j] += move if m.skipgram or m.mean else move / len(group)
        pairs += len(near)
        if i % 16 == 0 and near:
            loss -= float((np.log(1 - np.minimum(abs(error), 0.9999)) * counts).sum())
            measured += len(X)
        drawn = ahead
    for j in list(ring):
        leave(j)
    return loss, measured, pairs, np.uint64(chance[0])


def _uniform(chance):
    chance[0] = (chance[0] * 6364136223846793005 + 1442695040888963407) % 2**64
    return (chance[0] >> 11) / 2**53


def _parts(m, word):  # rows of the table that a word is the mean of
    return m.parts[slice(*m.part_offsets[word : word + 2])] if len(m.parts) else np.array([word])


def _targets(m, word, drawn):  # their rows, their labels, and whether they count: the word itself is no noise
    ids = [word, *drawn] if m.negative else []
    path = slice(*m.node_offsets[word : word + 2]) if len(m.nodes) else slice(0)
    rows = np.concatenate([m.contexts + np.array(ids, np.int64), m.nodes[path]])
    labels = np.concatenate([np.arange(len(ids), dtype=np.float32) == 0, m.turns[path]])
    return rows, labels, (labels > 0) | (rows != m.contexts + word)
