"""µP by what it promises: one step changes the logits by the same at every width."""

import math

import pytest
import torch

from luthier.models.config import ModelConfig, ModelConfigError
from luthier.models.mup import init_by_width, rates_by_width
from luthier.models.transformer import Transformer

BASE, VOCABULARY = 32, 50


def make(width: int, **more) -> Transformer:
    heads = width // 16
    shape = {"tie_word_embeddings": False, "initializer_range": 0.1, **more}
    return Transformer(ModelConfig(VOCABULARY, width, 2 * width, 2, heads, heads, **shape))


def change(width: int, by_width: bool) -> float:
    """Root mean square of what three steps of Adam change in the logits."""
    model = make(width)
    rates = dict.fromkeys(dict(model.named_parameters()), 1.0)
    if by_width:
        init_by_width(model, BASE)
        rates = rates_by_width(model, BASE)
    groups = [{"params": [w], "lr": 3e-3 * rates[name]} for name, w in model.named_parameters()]
    adam = torch.optim.Adam(groups)
    ids = torch.randint(0, VOCABULARY, (4, 33), generator=torch.Generator().manual_seed(0))
    before = model(ids).detach()
    for _ in range(3):
        adam.zero_grad()
        loss, count = model.loss(ids[:, :-1], ids[:, 1:].contiguous())
        (loss / count).backward()
        adam.step()
    return float((model(ids).detach() - before).pow(2).mean().sqrt())


def test_a_step_is_as_large_at_every_width() -> None:
    narrow, wide = change(BASE, True), change(4 * BASE, True)
    assert 0.5 < wide / narrow < 2.0
    assert change(4 * BASE, False) / narrow > 3.0  # the usual initializer: it grows with the width


def test_spread_and_rates() -> None:
    model = make(4 * BASE)
    init_by_width(model, BASE)
    spread = {name: float(w.detach().std()) for name, w in model.named_parameters() if w.dim() == 2}
    assert spread["embed_tokens.weight"] == pytest.approx(0.1, rel=0.05)
    assert spread["layers.1.mlp.up_proj.weight"] == pytest.approx(0.05, rel=0.05)
    assert spread["layers.1.mlp.down_proj.weight"] == pytest.approx(0.05 / math.sqrt(4), rel=0.05)
    assert spread["lm_head.weight"] == pytest.approx(0.025, rel=0.05)
    rates = rates_by_width(model, BASE)
    assert rates["lm_head.weight"] == rates["layers.0.self_attn.q_proj.weight"] == 0.25
    assert rates["embed_tokens.weight"] == rates["norm.weight"] == 1.0


def test_at_the_base_width_nothing_changes() -> None:
    model, plain = make(BASE), make(BASE)
    init_by_width(model, BASE)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_tied_head_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="tie_word_embeddings"):
        init_by_width(make(BASE, tie_word_embeddings=True), BASE)
