"""Copies and the split against brute force on planted data."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.dedup import (
    PERMUTATIONS,
    Text,
    bands,
    clusters,
    drop_copies,
    jaccard,
    shingles,
    similar_pairs,
    split,
)

WORDS = [f"word{n}" for n in range(3000)]


def document(rng: random.Random, length: int = 150) -> list[str]:
    return [rng.choice(WORDS) for _ in range(length)]


def planted(seed: int = 0, originals: int = 60) -> list[Text]:
    """Random documents and, for every other one, a copy with 0 to 13 of its 150 words changed."""
    rng = random.Random(seed)
    texts = []
    for n in range(originals):
        words = document(rng)
        texts.append(Text(f"d{n:03}.md", " ".join(words), f"2024-01-{n % 28 + 1:02}"))
        if n % 2:
            copy = list(words)
            for at in rng.sample(range(len(copy)), rng.randrange(14)):
                copy[at] = rng.choice(WORDS)
            texts.append(Text(f"c{n:03}.md", " ".join(copy), "2024-02-01"))
    return texts


def true_similarity(a: str, b: str) -> float:
    """Jaccard over sets of word 5-grams, on the strings themselves."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    x, y = grams(a), grams(b)
    return len(x & y) / len(x | y)


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
def test_similar_pairs_are_those_of_brute_force(threshold: float) -> None:
    texts = planted()
    truth = {
        (i, j): s
        for i, j in itertools.combinations(range(len(texts)), 2)
        if (s := true_similarity(texts[i].text, texts[j].text)) >= threshold
    }
    found = similar_pairs([shingles(t.text) for t in texts], threshold)
    assert len(truth) >= 5
    assert found.keys() == truth.keys()  # recall and precision are both 1
    assert all(found[pair] == pytest.approx(truth[pair]) for pair in truth)


def test_bands_let_pairs_at_the_threshold_meet() -> None:
    for threshold in (0.3, 0.4, 0.5, 0.8, 0.95):
        b, r = bands(threshold)
        assert b * r <= PERMUTATIONS
        assert 1 - (1 - threshold**r) ** b >= 0.9999


def test_jaccard_by_hand() -> None:
    """5-grams of seven words: three; with the last word changed two stay the same: 2 / (3 + 3 - 2)."""
    assert jaccard(shingles("a b c d e f g"), shingles("a b c d e f x")) == 0.5
    assert jaccard(shingles("A, b; c!"), shingles("a b c")) == 1.0  # punctuation and case do not count
    assert jaccard(shingles(""), shingles("")) == 0.0
    assert shingles("one two").dtype == np.uint64


def test_which_copy_is_kept_does_not_depend_on_the_order() -> None:
    texts = planted(1, 30)
    texts += [Text("z.md", texts[0].text), Text("a.md", texts[0].text.upper() + "!"), Text("y.md", texts[0].text)]
    expected = {texts[c.index].path: (texts[c.kept].path, c.rule, c.similarity) for c in drop_copies(texts, 0.7)}
    assert {rule for _, rule, _ in expected.values()} == {"exact-duplicate", "near-duplicate"}
    rng = random.Random(0)
    for _ in range(8):
        shuffled = rng.sample(texts, len(texts))
        got = {
            shuffled[c.index].path: (shuffled[c.kept].path, c.rule, c.similarity) for c in drop_copies(shuffled, 0.7)
        }
        assert got == expected


def test_the_longest_then_the_newest_then_the_first_path_is_kept() -> None:
    base = " ".join(WORDS[:100])
    texts = [
        Text("short.md", base, "2030-01-01"),
        Text("long.md", base + " and two", "2000-01-01"),
        Text("other.md", " ".join(WORDS[500:600]), "2020-01-01"),
        Text("b-other.md", " ".join(WORDS[500:600]), "2021-01-01"),
        Text("a-other.md", " ".join(WORDS[500:600]), "2021-01-01"),
    ]
    copies = {texts[c.index].path: texts[c.kept].path for c in drop_copies(texts, 0.8)}
    assert copies == {"short.md": "long.md", "other.md": "a-other.md", "b-other.md": "a-other.md"}


def test_a_chain_keeps_both_ends() -> None:
    """A~B and B~C but not A~C: B goes, C is like nothing that stays."""
    words = WORDS[:200]
    a, b, c = words[:120] + WORDS[300:306], words[20:140], words[40:160]
    texts = [Text("a.md", " ".join(a)), Text("b.md", " ".join(b)), Text("c.md", " ".join(c))]
    assert [texts[x.index].path for x in drop_copies(texts, 0.6)] == ["b.md"]


def test_nothing_is_dropped_above_one_but_exact_copies() -> None:
    texts = [Text("a", "one two three"), Text("b", "one two three"), Text("c", "one two three four")]
    assert [(c.index, c.rule) for c in drop_copies(texts, 1.5)] == [(1, "exact-duplicate")]


# ---------------------------------------------------------------- split


@given(st.integers(0, 1000), st.floats(0.02, 0.6))
@settings(max_examples=15)
def test_near_copies_never_straddle(seed: int, fraction: float) -> None:
    texts = planted(seed, 16)
    held = split(texts, fraction, 0.4, seed=seed)
    assert any(held)
    assert not all(held)
    for i, j in itertools.combinations(range(len(texts)), 2):
        if true_similarity(texts[i].text, texts[j].text) >= 0.4:
            assert held[i] == held[j]


def test_split_is_the_same_in_any_order_and_of_about_the_asked_size() -> None:
    texts = planted(3)
    held = {t.path for t, out in zip(texts, split(texts, 0.2, 0.4), strict=True) if out}
    share = sum(len(t.text) for t in texts if t.path in held) / sum(len(t.text) for t in texts)
    assert 0.15 < share <= 0.2
    rng = random.Random(0)
    for _ in range(4):
        shuffled = rng.sample(texts, len(texts))
        assert {t.path for t, out in zip(shuffled, split(shuffled, 0.2, 0.4), strict=True) if out} == held
    other = {t.path for t, out in zip(texts, split(texts, 0.2, 0.4, seed=1), strict=True) if out}
    assert other != held


def test_forced_documents_take_their_cluster_along() -> None:
    texts = planted(5, 12)
    copy = next(i for i, t in enumerate(texts) if t.path.startswith("c"))
    forced = [i == copy for i in range(len(texts))]
    held = split(texts, 0.0, 0.3, forced=forced)
    original = next(i for i, t in enumerate(texts) if t.path == texts[copy].path.replace("c", "d"))
    assert {i for i, out in enumerate(held) if out} == {copy, original}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_training_is_never_left_empty(count: int) -> None:
    texts = [Text(f"{n}.md", f"{WORDS[n]} {WORDS[n + 9]} text number {n}") for n in range(count)]
    held = split(texts, 0.9, 0.4)
    assert len(held) == count
    assert count == 0 or not all(held)


def test_clusters_by_hand() -> None:
    assert clusters(6, [(4, 5), (0, 2), (2, 4)]) == [0, 1, 0, 3, 0, 0]
