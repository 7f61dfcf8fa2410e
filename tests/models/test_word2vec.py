"""Word2Vec against its plain twin, torch's autograd in float64, chance itself, and gensim on real text."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models import word2vec
from luthier.models.huffman import huffman_paths
from luthier.models.vectors import VectorsError
from luthier.models.word2vec import Word2Vec, Word2VecSettings, alias_table, keep_probability, train_word2vec
from luthier.models.word2vec_plain import walk_plain

SIZE = 60


@pytest.fixture(scope="module")
def text():
    """1,000 words of 60 different ones in documents of 300, 0, 1 and 699 words, with their counts."""
    rows = np.minimum(np.random.default_rng(0).geometric(0.08, 1000) - 1, SIZE - 1)
    return rows, np.array([0, 300, 300, 301, 1000]), np.maximum(np.bincount(rows, minlength=SIZE), 1)


TOKENS = [3 * chr(97 + n % 26) + "äing"[: n % 5] for n in range(SIZE)]
KINDS = [
    {},
    {"negative": 7, "window": 2},
    {"negative": 1, "sample": 0},
    {"vector_size": 33},
    {"sg": False},
    {"sg": False, "cbow_mean": False, "vector_size": 9},
    {"hs": True, "negative": 0},
    {"hs": True},
    {"shared_noise": 0},
    {"shared_noise": 3},
    {"max_n": 5, "bucket": 50},
    {"max_n": 5, "bucket": 50, "sg": False},
    {"deterministic": True, "workers": 3},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_plain_twin_gives_the_same_vectors(text, kind):
    options = {"vector_size": 20, "epochs": 2, "sample": 1e-2, "seed": 3, "tokens": TOKENS, **kind}
    fast = train_word2vec(*text, **options)
    plain = train_word2vec(*text, **options, kernel=walk_plain)
    assert fast.pairs == plain.pairs > 0
    np.testing.assert_allclose(fast.losses, plain.losses, rtol=1e-5)
    for ours, theirs in ((fast.vectors, plain.vectors), (fast.contexts, plain.contexts)):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_one_thread_gives_the_same_bits_and_another_seed_others(text):
    first, again, other = (train_word2vec(*text, vector_size=16, epochs=1, seed=s) for s in (5, 5, 6))
    assert first.vectors.tobytes() == again.vectors.tobytes()
    assert first.contexts.tobytes() == again.contexts.tobytes()
    assert first.vectors.tobytes() != other.vectors.tobytes()


def test_every_epoch_takes_all_pieces_in_an_order_of_its_own(text, monkeypatch):
    monkeypatch.setattr(word2vec, "PIECE", 100)
    seen, rates = [], []

    def kernel(kept, ends, a, b, model, room, rate, end_rate, state):
        seen.append(kept.tobytes())
        rates.extend([rate, end_rate])
        return 0.0, 1, 0, state

    train_word2vec(*text, vector_size=16, epochs=3, sample=0, kernel=kernel)
    pieces = [text[0][n : n + 100].astype(np.int32).tobytes() for n in range(0, 1000, 100)]
    orders = [tuple(pieces.index(piece) for piece in seen[n : n + 10]) for n in (0, 10, 20)]
    assert all(sorted(order) == list(range(10)) for order in orders) and len({*orders, tuple(range(10))}) == 4
    assert rates == sorted(rates, reverse=True)  # by turn


def test_the_tables_are_handed_out_and_not_copied(text):
    with_ngrams = Word2VecSettings(vector_size=16, max_n=4, bucket=500)
    training = Word2Vec(*text, settings=with_ngrams, tokens=TOKENS)
    plain = Word2Vec(*text, settings=Word2VecSettings(vector_size=16))
    assert np.shares_memory(plain.vectors, plain.table) and np.shares_memory(plain.contexts, plain.table)
    assert training.ngrams is not None and np.shares_memory(training.ngrams, training.table)


def test_several_threads_train_every_word(text):
    many = train_word2vec(*text, vector_size=16, epochs=3, workers=3)
    one = train_word2vec(*text, vector_size=16, epochs=3)
    assert np.isfinite(many.vectors).all()
    assert abs(many.pairs / one.pairs - 1) < 0.1  # windows end where a thread's share ends
    assert many.losses[-1] < many.losses[0]


@pytest.mark.parametrize("kind", [{}, {"sg": False}, {"sg": False, "cbow_mean": False}, {"hs": True, "negative": 0}])
def test_one_step_is_the_gradient_of_the_loss(kind):
    """The middle one of the words 3, 5, 8 is trained, noise is always word 7; against autograd in float64.

    Skip-gram: the sum over both neighbours x of −log σ(w_x · c_5) − 4 log σ(−w_x · c_7). CBOW: the same for their mean
    or sum; there word2vec.c and gensim give each neighbour twice the mean's gradient, or half the sum's. Tree: the sum
    over the nodes n on the path of 5 of −log σ(± w_x · c_n).
    """
    counts, rate = np.arange(40, 0, -1), 0.1
    options = Word2VecSettings(**{"vector_size": 16, "window": 1, "negative": 4, **kind})
    training = Word2Vec(np.array([3, 5, 8]), np.array([0, 3]), counts, options)
    table = training.table
    table[:] = np.random.default_rng(1).normal(0, 0.5, table.shape)
    w = torch.tensor(table, dtype=torch.float64, requires_grad=True)
    training._model.noise[:] = 7.0
    kept, ends = np.array([3, 5, 8], np.int32), np.array([3])
    room = training._borrow()[0]
    _, _, pairs, _ = training.kernel(kept, ends, 1, 2, training._model, room, rate, rate, np.uint64(11))
    assert pairs == 2
    scores = torch.nn.functional.logsigmoid
    near, times = w[[3, 8]], 1.0
    if not options.sg:
        near = near.mean(0, keepdim=True) if options.cbow_mean else near.sum(0, keepdim=True)
        times = 2.0 if options.cbow_mean else 0.5
    if options.hs:
        nodes, turns, offsets = huffman_paths(counts)
        signs = torch.tensor(2.0 * turns[offsets[5] : offsets[6]] - 1, dtype=torch.float64)
        loss = -scores(signs * (near @ w[80 + nodes[offsets[5] : offsets[6]]].T)).sum()
    else:
        loss = -scores(near @ w[45]).sum() - 4 * scores(-(near @ w[47])).sum()
    (slope,) = torch.autograd.grad(loss, w)
    slope[[3, 8]] *= times
    np.testing.assert_allclose(table, (w - rate * slope).detach().numpy(), atol=1e-6)


def test_no_window_crosses_a_document():
    """Even words only in the first documents, odd ones only in the others: no even word ever meets an odd one."""
    rng = np.random.default_rng(0)
    even, odd = rng.integers(0, 5, 500) * 2, rng.integers(0, 5, 500) * 2 + 1
    rows = np.concatenate([even, odd, even])
    apart = np.array([0, 500, 1000, 1500])
    trained = train_word2vec(rows, apart, np.bincount(rows), vector_size=10, epochs=1, sample=0, window=4)
    per_document = sum(2 * sum(min(i, 4) for i in range(500)) for _ in range(3))
    assert trained.pairs < per_document  # reach is 1 … 4, never more
    one_word_each = np.arange(len(rows) + 1)
    assert train_word2vec(rows, one_word_each, np.bincount(rows), epochs=1).pairs == 0


@settings(max_examples=50)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40))
def test_the_alias_table_holds_every_chance_exactly(weights):
    accept, alias = alias_table(np.array(weights, float))
    chance = accept.copy()
    np.add.at(chance, alias, 1 - accept)
    np.testing.assert_allclose(chance / len(weights), np.array(weights) / sum(weights), atol=1e-12)
    assert ((accept >= 0) & (accept <= 1 + 1e-12)).all()


def test_frequent_words_are_thinned_as_in_word2vec_c():
    """word2vec.c keeps a word with chance (√(f/t) + 1)·t/f."""
    counts = np.array([9000, 900, 99, 1])
    f = counts / counts.sum()
    expected = np.minimum(1, (np.sqrt(f / 1e-3) + 1) * 1e-3 / f)
    np.testing.assert_allclose(keep_probability(counts, 1e-3), expected)
    assert (keep_probability(counts, 0) == 1).all()


@pytest.mark.parametrize("kind", ["vector_size", "window", "negative", "epochs", "workers", "alpha"])
def test_settings_that_cannot_be_are_named(text, kind):
    with pytest.raises(VectorsError, match=f"{kind} = 0"):
        train_word2vec(*text, **{kind: 0})


def test_a_text_of_one_word_is_refused():
    with pytest.raises(VectorsError, match="too little"):
        train_word2vec(np.zeros(10, int), np.array([0, 10]), np.array([10]))


def test_words_of_like_use_become_alike():
    """A made-up language: subject verb object, three kinds of subject, each with verbs of its own. Words of one kind
    must be nearer to each other than to those of another."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 4000)
    rows = np.stack([kinds * 4 + rng.integers(0, 4, 4000), 12 + kinds * 4 + rng.integers(0, 4, 4000)], 1).ravel()
    offsets = np.arange(0, len(rows) + 1, 2)
    t = train_word2vec(rows, offsets, np.bincount(rows), vector_size=12, epochs=8, sample=0, window=2, alpha=0.05)
    subjects = t.vectors[:12] / np.linalg.norm(t.vectors[:12], axis=1, keepdims=True)
    cosine = subjects @ subjects.T
    same = np.kron(np.eye(3), np.ones((4, 4))).astype(bool)
    assert cosine[same].min() > cosine[~same].max()


@pytest.mark.skipif("LUTHIER_TEST_DATA" not in os.environ, reason="LUTHIER_TEST_DATA is not set")
def test_the_same_words_are_alike_as_in_gensim():
    """On 160,000 words of English, the 125,000 cosines between the 500 commonest words agree with gensim's: two seeds
    of gensim correlate 0.98 with each other, ours and gensim's 0.97."""
    from gensim.models import Word2Vec

    with (Path(os.environ["LUTHIER_TEST_DATA"]) / "text" / "english.txt").open(encoding="utf-8") as file:
        documents = [d.lower().split() for d in file.read(1_200_000).split("\n\n\n")]
    theirs = Word2Vec(documents, vector_size=50, window=5, negative=5, sg=1, epochs=3, min_count=5, workers=1).wv
    number = {word: n for n, word in enumerate(theirs.index_to_key)}
    known = [[number[w] for w in d if w in number] for d in documents]
    rows, offsets = np.concatenate(known), np.cumsum([0, *map(len, known)])
    ours = train_word2vec(rows, offsets, np.bincount(rows), vector_size=50, epochs=3)
    assert np.corrcoef(cosines(ours.vectors[:500]), cosines(theirs.vectors[:500]))[0, 1] > 0.93


def cosines(table):
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def test_a_state_in_the_order_of_before_is_refused(text):
    """Its position says which pieces were done of another order."""
    training = Word2Vec(*text, settings=Word2VecSettings(vector_size=16))
    state = training.state()
    training.restore(state)
    del state["order"]
    with pytest.raises(VectorsError, match="--overwrite"):
        training.restore(state)
