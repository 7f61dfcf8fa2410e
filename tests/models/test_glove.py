"""GloVe: the step against autograd in float64, the fit, going on, ice and steam."""

import numpy as np
import pytest
import torch

from luthier.models import glove
from luthier.models.cooccurrence import Cooccurrences, count_pairs
from luthier.models.glove import Diverged, Progress, adagrad, adagrad_plain, train_glove
from luthier.models.vectors import VectorsError


def tables(size, dim, seed=0):
    rng = np.random.default_rng(seed)
    W, C = (
        np.concatenate([rng.normal(0, 0.4, (size, dim)), rng.uniform(1, 2, (size, dim))], axis=1).astype(np.float32)
        for _ in range(2)
    )
    b = np.concatenate([rng.normal(0, 0.4, (size, 2)), rng.uniform(1, 2, (size, 2))], axis=1).astype(np.float32)
    return W, C, b


@pytest.mark.parametrize("kernel", [adagrad, adagrad_plain])
def test_one_step_is_adagrad_on_the_gradient_of_the_loss(kernel):
    """½ f(x) (w·c + b + b̃ − log x)² by autograd in float64; value −= r·g/√squares, squares += (r·g)², r = eta or 1."""
    W, C, b = tables(3, 16)
    w, c, bw, bc = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (W[1, :16], C[2, :16], b[1, 0], b[2, 1])
    )
    squares = [torch.tensor(v, dtype=torch.float64) for v in (W[1, 16:], C[2, 16:], b[1, 2], b[2, 3])]
    x, f = 4.0, (4 / 10) ** 0.75
    loss = 0.5 * f * (w @ c + bw + bc - np.log(x)) ** 2
    gradients = torch.autograd.grad(loss, (w, c, bw, bc))
    i, j = np.array([1], np.int32), np.array([2], np.int32)
    log_x, weight = np.log(np.array([x], np.float32)), np.array([f], np.float32)
    found, bad = kernel(i, j, log_x, weight, 0, 1, W, C, b, np.float32(0.05))
    assert (found, bad) == (pytest.approx(loss.item(), rel=1e-5), -1)
    after = (W[1, :16], C[2, :16], b[1, 0], b[2, 1]), (W[1, 16:], C[2, 16:], b[1, 2], b[2, 3])
    rates = (0.05, 0.05, 1, 1)
    for value, now, g, square, square_now, r in zip(
        (w, c, bw, bc), after[0], gradients, squares, after[1], rates, strict=True
    ):
        np.testing.assert_allclose(now, (value - r * g / square.sqrt()).detach().numpy(), atol=1e-6)
        np.testing.assert_allclose(square_now, (square + (r * g) ** 2).numpy(), rtol=1e-5)


@pytest.fixture(scope="module")
def pairs():
    rows = np.minimum(np.random.default_rng(0).geometric(0.08, 3000) - 1, 39)
    return count_pairs(rows, np.array([0, 1000, 3000]), 40, window=4)


def test_the_plain_twin_gives_the_same_vectors(pairs):
    fast, plain = (train_glove(pairs, 40, vector_size=20, iterations=4, kernel=k) for k in (adagrad, adagrad_plain))
    np.testing.assert_allclose(fast.losses, plain.losses, rtol=1e-4)
    assert np.abs(fast.vectors - plain.vectors).max() < 1e-4 * np.abs(plain.vectors).max()


def test_one_thread_gives_the_same_bits_and_several_reach_the_same_loss(pairs):
    one, again = (train_glove(pairs, 40, vector_size=16, iterations=10) for _ in range(2))
    assert one.vectors.tobytes() == again.vectors.tobytes()
    many = train_glove(pairs, 40, vector_size=16, iterations=10, workers=3)
    assert many.losses[-1] == pytest.approx(one.losses[-1], rel=0.1)
    assert one.losses == sorted(one.losses, reverse=True)


def copied(p):
    return Progress(p.W.copy(), p.C.copy(), p.b.copy(), list(p.losses), p.visited, p.total)


def test_a_training_that_went_on_has_the_bits_of_one_that_was_never_stopped(pairs, monkeypatch, tmp_path):
    """From every round of it, also with the pairs in files."""
    monkeypatch.setattr(glove, "ROUND", 300)
    kept = []
    whole = train_glove(pairs, 40, vector_size=12, iterations=3, keep=lambda p: kept.append(copied(p)))
    assert len(kept) == 3 * -(-len(pairs.x) // 300)
    for n, begun in enumerate(kept[:-1]):
        rest = train_glove(pairs, 40, vector_size=12, iterations=3, begun=begun, folder=tmp_path if n % 2 else None)
        assert rest.vectors.tobytes() == whole.vectors.tobytes()
        assert rest.losses == whole.losses


@pytest.mark.parametrize("part", [1 << 16, 20])
def test_every_pair_is_visited_once(pairs, monkeypatch, part):
    monkeypatch.setattr(glove, "PART", part)
    order = ordered(pairs)
    found = sorted(zip(order.i.tolist(), order.j.tolist(), order.log_x.tolist(), order.f.tolist(), strict=True))
    f = np.minimum(1, (pairs.x / 10) ** 0.75)
    np.testing.assert_allclose(found, np.stack([pairs.i, pairs.j, np.log(pairs.x), f], axis=1), rtol=1e-5, atol=1e-6)
    assert order.i.tolist() != sorted(order.i.tolist())


@pytest.mark.parametrize("part", [1 << 16, 20])
def test_the_order_is_by_chance(pairs, monkeypatch, part):
    """Place against place before: no correlation, nor with the order of another seed."""
    monkeypatch.setattr(glove, "PART", part)
    order = [ordered(pairs, seed) for seed in (0, 1)]
    number = {pair: n for n, pair in enumerate(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))}
    places = [[number[pair] for pair in zip(o.i.tolist(), o.j.tolist(), strict=True)] for o in order]
    n = len(pairs.x)
    for a, b in ((places[0], range(n)), (places[1], range(n)), places):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / n**0.5


def ordered(pairs, seed=0):
    return glove._in_order(pairs, 10, 0.75, np.random.default_rng(seed), None)


def test_a_table_that_has_an_exact_solution_is_found():
    """log X = w·c + b + b̃ with planted w, c, b of 2 dimensions: 16 free ones must bring the loss to nearly nothing."""
    rng = np.random.default_rng(0)
    w, c, b = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)), rng.normal(size=(2, 20))
    log_x = w @ c.T + b[0][:, None] + b[1]
    i, j = np.divmod(np.arange(400), 20)
    planted = Cooccurrences(i.astype(np.int32), j.astype(np.int32), np.exp(log_x).ravel().astype(np.float32))
    losses = train_glove(planted, 20, vector_size=16, iterations=300, eta=0.2).losses
    assert losses[-1] < 1e-3 * losses[0]


def test_ice_and_steam():
    """The paper's table 1 in small: the ratio P(k|ice)/P(k|steam) is large for solid, small for gas, near one for water
    and fashion. A text is made with such ratios; trained vectors must give back each log ratio, since
    (w_ice − w_steam)·c_k + b_ice − b_steam = log X_ice,k − log X_steam,k where f is not small."""
    ice, steam, ratio = 0, 1, {"solid": 8.0, "gas": 1 / 8, "water": 1.0, "fashion": 1.0}
    near = {"solid": 80, "gas": 10, "water": 300, "fashion": 20}
    documents = [[ice, k] for k, name in enumerate(near, 2) for _ in range(near[name])]
    documents += [[steam, k] for k, name in enumerate(near, 2) for _ in range(round(near[name] / ratio[name]))]
    rows, offsets = np.array(documents).ravel(), np.arange(0, 2 * len(documents) + 1, 2)
    counted = count_pairs(rows, offsets, 6, window=1)
    x = {(i, j): v for i, j, v in zip(*(a.tolist() for a in counted), strict=True)}
    for k, name in enumerate(near, 2):
        assert x[ice, k] / x[steam, k] == pytest.approx(ratio[name], rel=0.05)
    trained = train_glove(counted, 6, vector_size=8, iterations=600, x_max=10, eta=0.1)
    difference = (trained.vectors - trained.contexts)[ice] - (trained.vectors - trained.contexts)[steam]
    scores = trained.contexts[2:] @ difference  # solid, gas, water, fashion; b_ice − b_steam is common to all
    relative = scores - scores[2]
    assert relative[0] == pytest.approx(np.log(8), abs=0.2)
    assert relative[1] == pytest.approx(-np.log(8), abs=0.2)
    assert relative[3] == pytest.approx(0, abs=0.2)


def test_leaving_the_range_of_numbers_names_the_pair(pairs):
    with pytest.raises(Diverged, match="lower eta") as stop:
        train_glove(pairs, 40, vector_size=8, iterations=5, eta=1e6)
    assert (pairs.x[(pairs.i == stop.value.i) & (pairs.j == stop.value.j)] == np.float32(stop.value.x)).all()


def test_a_number_that_is_none_is_noticed():
    """NaN must not slip through the compiler's fast arithmetic."""
    W, C, b = tables(2, 16)
    W[0, 3] = np.nan
    i, j, one = np.zeros(1, np.int32), np.ones(1, np.int32), np.ones(1, np.float32)
    assert adagrad(i, j, one, one, 0, 1, W, C, b, np.float32(0.05))[1] == 0


def test_what_cannot_be_trained_is_refused(pairs):
    with pytest.raises(VectorsError, match="nothing to learn"):
        train_glove(count_pairs(np.arange(3), np.arange(4), 3, window=2), 3)
    with pytest.raises(VectorsError, match="iterations = 0"):
        train_glove(pairs, 40, iterations=0)
    with pytest.raises(VectorsError, match="eta = 0"):
        train_glove(pairs, 40, eta=0)
