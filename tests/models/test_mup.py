"""µP by what it promises: what a few steps change in the logits is the same at every width."""

import math
from typing import Any

import pytest
import torch

from luthier.core.training.optimizers import make_optimizers
from luthier.models.config import ModelConfig, ModelConfigError
from luthier.models.mup import init_by_width, mup_said, rates_by_width
from luthier.models.transformer import Transformer

BASE, VOCABULARY = 32, 50


def make(width: int, tied: bool, **more: Any) -> Transformer:
    heads = width // 16
    shape = {"tie_word_embeddings": tied, "initializer_range": 0.1, **more}
    return Transformer(ModelConfig(VOCABULARY, width, 2 * width, 2, heads, heads, **shape))


def change(width: int, tied: bool, optimizer: str, by_width: bool) -> dict[str, float]:
    """Root mean square of what three steps change in the logits and in what the first layer's parts put out: the
    paper's coordinate check."""
    model = make(width, tied)
    if by_width:
        init_by_width(model, BASE)
    optimizers = make_optimizers(model, name=optimizer, lr=3e-3, mup_base_width=BASE * by_width)
    ids = torch.randint(0, VOCABULARY, (4, 33), generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}
    layer: Any = model.layers[0]
    for name, part in (("attention", layer.self_attn), ("feed-forward", layer.mlp)):
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.detach()))

    def outputs() -> dict[str, torch.Tensor]:
        logits = model(ids).detach()
        return {"logits": logits, **seen}

    before = outputs()
    for _ in range(3):
        model.zero_grad()
        loss, count = model.loss(ids[:, :-1], ids[:, 1:].contiguous())
        (loss / count).backward()
        for one in optimizers:
            one.step()
    return {name: float((x - before[name]).pow(2).mean().sqrt()) for name, x in outputs().items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw-8bit"])
def test_steps_are_as_large_at_every_width(optimizer: str, tied: bool) -> None:
    narrow, wide = (change(width, tied, optimizer, True) for width in (BASE, 8 * BASE))
    usual = change(8 * BASE, tied, optimizer, False)
    for name in narrow:
        assert 0.5 < wide[name] / narrow[name] < 2.0, (name, wide[name] / narrow[name])
    assert usual["logits"] / narrow["logits"] > 4.0  # the usual initializer: it grows with the width


def test_spread_and_rates() -> None:
    model = make(4 * BASE, tied=False)
    init_by_width(model, BASE)
    spread = {name: float(w.detach().std()) for name, w in model.named_parameters() if w.dim() == 2}
    assert spread["embed_tokens.weight"] == pytest.approx(0.1, rel=0.05)
    assert spread["layers.1.mlp.up_proj.weight"] == pytest.approx(0.05, rel=0.05)
    assert spread["layers.1.mlp.down_proj.weight"] == pytest.approx(0.05 / math.sqrt(4), rel=0.05)
    assert spread["lm_head.weight"] == pytest.approx(0.025, rel=0.05)
    rates = rates_by_width(model, BASE)
    assert rates["lm_head.weight"] == rates["layers.0.self_attn.q_proj.weight"] == 0.25
    assert rates["embed_tokens.weight"] == rates["norm.weight"] == 1.0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_head_is_multiplied_by_the_last_norm(family: str) -> None:
    """Five steps with the last norm at 1/m and η/m, and with a plain last norm and logits / m: the same logits."""
    more: dict[str, Any] = {"model_type": family} | ({"hidden_act": "gelu_new"} if family == "gpt2" else {})
    ours, plain = (make(4 * BASE, tied=True, **more).double() for _ in range(2))
    init_by_width(ours, BASE)
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        plain.norm.weight.fill_(1.0)
    rates = rates_by_width(ours, BASE)
    assert rates["embed_tokens.weight"] == 1.0 and rates["norm.weight"] == 0.25
    ids = torch.randint(0, VOCABULARY, (4, 17), generator=torch.Generator().manual_seed(0))

    def trained(model: Transformer, rate: dict[str, float], times: float) -> torch.Tensor:
        groups = [{"params": [w], "lr": 1e-2 * rate[name]} for name, w in model.named_parameters()]
        adam = torch.optim.AdamW(groups, eps=1e-18, weight_decay=0.0)
        for _ in range(5):
            adam.zero_grad()
            logits = model(ids[:, :-1]) * times
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            adam.step()
        return (model(ids) * times).detach()

    theirs = trained(plain, {**rates, "norm.weight": 1.0, "norm.bias": 1.0}, 0.25)
    assert torch.allclose(trained(ours, rates, 1.0), theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_groups_of_the_optimizers(optimizer: str) -> None:
    """Rates by group, and a decay a step that no width changes."""
    model = make(4 * BASE, tied=True)
    optimizers = make_optimizers(model, name=optimizer, lr=1e-2, weight_decay=0.1, mup_base_width=BASE)
    rate, names = {}, {id(p): name for name, p in model.named_parameters()}
    for one in optimizers:
        for group in one.param_groups:
            for p in group["params"]:
                rate[names[id(p)]] = group["lr"]
                matrix = names[id(p)].startswith("layers.") and p.ndim == 2
                assert group["lr"] * group["weight_decay"] == pytest.approx(1e-3 if matrix else 0.0)
    assert rate.keys() == set(names.values())
    assert rate["embed_tokens.weight"] == rate["layers.0.input_layernorm.weight"] == 1e-2
    assert rate["norm.weight"] == 2.5e-3
    assert rate["layers.1.mlp.down_proj.weight"] == (2.5e-3 if optimizer == "adamw" else 5e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_at_the_base_width_nothing_changes(tied: bool) -> None:
    model, plain = make(BASE, tied), make(BASE, tied)
    init_by_width(model, BASE)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert set(rates_by_width(model, BASE).values()) == {1.0}


def test_what_is_said_is_what_is_drawn() -> None:
    model = make(4 * BASE, tied=True)
    said = mup_said(model.config, BASE)
    init_by_width(model, BASE)
    assert "4 × the width 32" in said and "matrices 0.1 / √4 = 0.05" in said and "last norm 1 / 4" in said
    drawn = dict(model.named_parameters())
    assert float(drawn["layers.0.self_attn.q_proj.weight"].detach().std()) == pytest.approx(0.05, rel=0.05)
    assert torch.equal(model.norm.weight, torch.full((4 * BASE,), 0.25))


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="base_width = -1"):
        init_by_width(make(BASE, tied=True), -1)
