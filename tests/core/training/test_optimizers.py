"""Optimizers against PyTorch's own, and one step by hand."""

import itertools
import math

import pytest
import torch
from torch import nn

from luthier.core.training.optimizers import AdamW, AdamW8bit, Muon, make_optimizers
from luthier.core.training.schedules import learning_rate_factor
from luthier.kernels.muon import newton_schulz


def twins(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    return ours, theirs, generator


def ten_steps(ours, theirs, optimizer, reference, generator):
    for _ in range(10):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()


def apart(ours, theirs):
    return max(float((p - q).detach().abs().max() / q.detach().abs().max()) for p, q in zip(ours, theirs, strict=True))


def test_one_adamw_step_by_hand():
    """θ = 2, g = 4, lr = 0.1, λ = 0.5: m̂ = g and v̂ = g² at t = 1, so θ = 2·(1 − 0.05) − 0.1·4/(4 + ε) = 1.8."""
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    p.grad = torch.tensor([4.0], dtype=torch.float64)
    AdamW([p], lr=0.1, weight_decay=0.5).step()
    assert p.item() == pytest.approx(1.8, abs=1e-8)


def test_ten_steps_of_adamw_equal_torchs():
    ours, theirs, generator = twins([(7, 5), (3,), (), (1, 9)])
    arguments = {"lr": 3e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ten_steps(ours, theirs, AdamW(ours, **arguments), torch.optim.AdamW(theirs, **arguments), generator)
    assert apart(ours, theirs) < 1e-6


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_ten_steps_of_muon_equal_torchs():
    """In bfloat16, as PyTorch's runs; its batched products round otherwise than single ones, hence the wide bound."""
    ours, theirs, generator = twins([(16, 24), (24, 16), (16, 24), (8, 8)])
    optimizer = Muon(ours, lr=2e-2, momentum=0.95, weight_decay=0.1, dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=2e-2, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ten_steps(ours, theirs, optimizer, reference, generator)
    assert apart(ours, theirs) < 5e-3


def test_newton_schulz_turns_singular_values_to_about_one_and_keeps_directions():
    x = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    turned = newton_schulz(x)
    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.6 and values.max() < 1.3
    inside = u.mT @ turned @ v.mT  # diagonal where the singular vectors are kept
    off = inside - torch.diag_embed(torch.diagonal(inside, dim1=1, dim2=2))
    assert off.abs().max() < 1e-4
    assert torch.allclose(newton_schulz(x.mT), turned.mT, atol=1e-4)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 4)
        self.layer = nn.Linear(4, 6, bias=True)
        self.norm = nn.LayerNorm(6)
        self.lm_head = nn.Linear(6, 11, bias=False)


def test_groups_decay_hidden_matrices_only():
    model = Small()
    muon, adam = make_optimizers(model, name="muon", lr=1.0)
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(model.layer.weight)]
    assert len(adam.param_groups[0]["params"]) == 5 and adam.param_groups[0]["weight_decay"] == 0.0
    (only,) = make_optimizers(model, name="adamw", lr=1.0, weight_decay=0.3)
    assert [(len(g["params"]), g["weight_decay"]) for g in only.param_groups] == [(1, 0.3), (5, 0.0)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_schedules_rise_never_exceed_one_and_end_low(schedule):
    factors = [learning_rate_factor(s, 100, schedule=schedule, warmup=0.1, floor=0.1) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0 and max(factors) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))
    assert factors[-1] == (1.0 if schedule == "constant" else pytest.approx(0.1, abs=0.03))
    if schedule == "cosine":
        assert factors[55] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 45 / 90)) / 2)


def bowl(optimizer_of, shape=(40, 120), dtype=torch.float32, steps=30):
    """How far a walk to the bottom of a bowl gets: the part of the way that is left."""
    generator = torch.Generator().manual_seed(2)
    goal = torch.randn(shape, generator=generator).to(dtype)
    p = nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = optimizer_of([p])
    for _ in range(steps):
        p.grad = (p - goal).detach()
        optimizer.step()
    return float((p - goal).detach().norm() / goal.norm()), optimizer


def test_eight_bits_walk_as_whole_states_do():
    whole, _ = bowl(lambda p: AdamW(p, lr=0.05, weight_decay=0.0))
    eight, optimizer = bowl(lambda p: AdamW8bit(p, lr=0.05, weight_decay=0.0))
    assert abs(whole - eight) < 0.02 and whole < 0.5
    (state,) = optimizer.state.values()
    assert state["m"].dtype == state["v"].dtype == torch.uint8
    assert sum(x.numel() * x.itemsize for x in state.values()) < 2.1 * 40 * 120


def test_bfloat16_weights_are_rounded_by_chance_and_the_same_each_time():
    """Steps of 1e-4 toward numbers near 1, where neighbours are 2⁻⁷ apart: rounding to the nearest never moves."""

    def walk(seed):
        p = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
        optimizer = AdamW([p], lr=1e-4, weight_decay=0.0, seed=seed)
        for _ in range(50):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert optimizer.state[p]["m"].dtype == torch.float32
        return p.detach().float()

    first = walk(0)
    assert float(1 - first.mean()) == pytest.approx(50e-4, rel=0.15)  # 6 deviations
    assert torch.equal(first, walk(0)) and not torch.equal(first, walk(1))


@pytest.mark.parametrize(
    "make", [lambda p: AdamW8bit(p, lr=0.1), lambda p: AdamW(p, lr=0.1), lambda p: Muon(p, lr=0.1)]
)
def test_states_come_back_as_they_were(make):
    """PyTorch itself casts a state to its weight's dtype: codes and float32 means of bfloat16 weights would be lost."""
    _, before = bowl(make, dtype=torch.bfloat16, steps=3)
    after = make([nn.Parameter(torch.zeros(40, 120, dtype=torch.bfloat16))])
    after.load_state_dict(before.state_dict())
    for old, new in zip(before.state.values(), after.state.values(), strict=True):
        assert old.keys() == new.keys()
        for name in old:
            assert old[name].dtype == new[name].dtype and torch.equal(old[name], new[name])


def test_eight_bits_are_for_hidden_matrices():
    eight, rest = make_optimizers(Small(), name="adamw-8bit", lr=0.1)
    assert isinstance(eight, AdamW8bit) and isinstance(rest, AdamW)
    assert [tuple(p.shape) for group in eight.param_groups for p in group["params"]] == [(6, 4)]
