"""Huffman's tree over the words: the output of hierarchical softmax (Morin & Bengio 2005; Mikolov et al. 2013b, 2.1).

P(word) = Π over the V − 1 inner nodes on the way from the root to the word of σ(± h · c_node): log V factors, not V.
Huffman's tree is the one of fewest expected steps: join the two rarest trees, again and again. With the leaves sorted
by count, the rarest tree is either the next leaf or the oldest join, so two queues do without a heap: O(V).

    counts  a 4  b 2  c 1  d 1      (c d) 2, (b (c d)) 4, (a (b (c d)));   paths  a 1, b 01, c 001, d 000
"""

from __future__ import annotations

import numpy as np

__all__ = ["huffman_paths"]


def huffman_paths(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nodes int64, turns float32, offsets int64 [V + 1]): word w passes nodes[offsets[w] : offsets[w + 1]], the root
    first, and turns left (1) or right (0) at each. Inner nodes are 0 … V − 2, the root the last."""
    V = len(counts)
    order = np.argsort(counts, kind="stable").tolist()
    sizes = [int(counts[w]) for w in order]  # leaves, rarest first; joins follow
    parent, left = np.zeros(2 * V - 1, np.int64), np.zeros(2 * V - 1, np.float32)
    leaf, join = 0, V
    for node in range(V, 2 * V - 1):
        for turn in (0, 1):
            take_leaf = leaf < V and (join >= node or sizes[leaf] <= sizes[join])
            child = leaf if take_leaf else join
            leaf, join = leaf + take_leaf, join + (not take_leaf)
            parent[child], left[child] = node, turn
            if turn == 0:
                sizes.append(sizes[child])
            else:
                sizes[node] += sizes[child]
    paths: list[tuple[list[int], list[float]]] = [([], [])] * V
    for place, word in enumerate(order):
        nodes, turns, at = [], [], place
        while at != 2 * V - 2:
            turns.append(float(left[at]))
            at = int(parent[at])
            nodes.append(at - V)
        paths[word] = nodes[::-1], turns[::-1]
    offsets = np.cumsum([0, *(len(nodes) for nodes, _ in paths)])
    flat = [node for nodes, _ in paths for node in nodes], [turn for _, turns in paths for turn in turns]
    return np.array(flat[0], np.int64), np.array(flat[1], np.float32), offsets
