"""Phrases against a direct count, and against the worked example in the docstring; n-grams against gensim's hash."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import luthier.models.phrases as phrases_module
from luthier.models.huffman import huffman_paths
from luthier.models.ngrams import fnv, ngram_parts, ngram_rows, ngrams
from luthier.models.phrases import find_phrases, join_phrases


def plain(documents, counts, min_count, threshold):
    """The same by dictionaries: the pairs found, and the documents joined."""
    times = {}
    for d in documents:
        for pair in pairwise(d):
            times[pair] = times.get(pair, 0) + 1
    total = sum(map(len, documents))
    found = sorted(
        (a, b)
        for (a, b), n in times.items()
        if min(counts[a], counts[b]) >= min_count and (n - min_count) * total / counts[a] / counts[b] > threshold
    )
    joined = []
    for d in documents:
        out, i = [], 0
        while i < len(d):
            if tuple(d[i : i + 2]) in found:
                out.append(len(counts) + found.index(tuple(d[i : i + 2])))
                i += 2
            else:
                out.append(d[i])
                i += 1
        joined.append(out)
    return found, joined


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 2))
def test_phrases_are_those_of_a_direct_count(documents, block, min_count):
    flat = np.array([x for d in documents for x in d], np.int32)
    offsets, counts = np.cumsum([0, *map(len, documents)]), np.bincount(flat, minlength=5)
    before, phrases_module.BLOCK = phrases_module.BLOCK, block
    try:
        keys = find_phrases(flat, offsets, counts, min_count=min_count, threshold=1.0)
        parts = list(join_phrases(flat, offsets, keys, 5))
    finally:
        phrases_module.BLOCK = before
    found, joined = plain(documents, counts, min_count, 1.0)
    assert [(k >> 32, k & 0xFFFFFFFF) for k in keys.tolist()] == found
    assert [x for ids, _ in parts for x in ids.tolist()] == [x for d in joined for x in d]
    places = np.concatenate([p for _, p in parts]) if parts else np.zeros(0)
    assert (np.diff(places) >= 1).all() and (np.diff(places) <= 2).all()


def test_the_score_is_how_many_times_more_often_than_by_chance():
    """ "new york" 10 times in 1,000 words, either word 10 times: (10 − 5) · 1,000 / (10 · 10) = 50."""
    text = np.full(1000, 2, np.int32)
    text[np.arange(0, 1000, 100)], text[np.arange(1, 1000, 100)] = 0, 1
    counts, offsets = np.bincount(text), np.array([0, 1000])
    assert find_phrases(text, offsets, counts, min_count=5, threshold=49.9).tolist() == [1]
    assert not len(find_phrases(text, offsets, counts, min_count=5, threshold=50.0))


def test_ngrams_of_where():
    """Bojanowski et al. 2017, section 3.2: the 3-grams of `where` are <wh, whe, her, ere, re>."""
    assert ngrams("where", 3, 3) == ["<wh", "whe", "her", "ere", "re>"]


@pytest.mark.parametrize("word", ["where", "the", "naïve", "Ελλάδα", "日本", "a"])
def test_ngrams_fall_into_the_buckets_of_fasttext(word):
    """gensim's FastText, which hashes as the original does."""
    fasttext = pytest.importorskip("gensim.models.fasttext_inner")
    assert ngram_rows(word, 3, 6, 2000) == _theirs(fasttext, word)


def _theirs(fasttext, word):
    return [fasttext.ft_hash_bytes(gram) % 2000 for gram in fasttext.compute_ngrams_bytes(word, 3, 6)]


def test_parts_begin_with_the_word_itself():
    rows, offsets = ngram_parts(["abc", "b"], 3, 4, 100)
    assert rows[0] == 0 and rows[offsets[1]] == 1 and offsets[-1] == len(rows)
    assert rows[1 : offsets[1]].tolist() == [2 + fnv(g) % 100 for g in ("<ab", "<abc", "abc", "abc>", "bc>")]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=30))
def test_huffmans_tree_is_the_shortest(counts):
    """Its mean path against that of the textbook's heap; and no path is the beginning of another."""
    import heapq

    nodes, turns, offsets = huffman_paths(np.array(counts))
    heap, cost = sorted(counts), 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        cost += joined
        heapq.heappush(heap, joined)
    assert (np.diff(offsets) * counts).sum() == cost
    codes = {tuple(turns[a:b].tolist()) for a, b in pairwise(offsets)}
    assert len(codes) == len(counts)
    assert not any(x != y and y[: len(x)] == x for x in codes for y in codes)
    for a in offsets[:-1]:
        assert nodes[a] == len(counts) - 2  # the root
