"""Adapters: they start at nothing, merging equals them, one base carries several, and their files are PEFT's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from luthier.models.adapter_files import base_of, is_adapter, load_adapter, open_model, save_adapter
from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import ModelConfig, preset
from luthier.models.lora import (
    TARGETS,
    AdaptedLinear,
    LoraConfig,
    LoraError,
    add_adapter,
    is_quantised,
    merge_adapters,
    quantize_base,
    use_adapter,
)
from luthier.models.transformer import Transformer

KINDS: list[Any] = ["lora", "rslora", "dora"]
SHAPE = preset(
    "demo", vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.1,
)  # fmt: skip
IDS = torch.randint(0, 97, (3, 17), generator=torch.Generator().manual_seed(7))


def model_of(family: Any = "llama") -> Transformer:
    model = Transformer(replace(SHAPE, model_type=family), seed=1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


def stirred(model: Transformer, seed: int = 2) -> Transformer:
    """Adapters as after training: no B at zero, no length as it was."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=random) * 0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS)
    return getattr(out, "logits", out)


def near(a: torch.Tensor, b: torch.Tensor, most: float = 1e-5) -> bool:
    return float((a - b).abs().max() / b.abs().max()) <= most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("four_bits", [False, True])
def test_it_starts_as_the_base_and_merging_equals_it(kind: Any, four_bits: bool) -> None:
    model = model_of("qwen2")
    if four_bits:
        quantize_base(model)
    base = logits(model)
    add_adapter(model, LoraConfig(4, 8.0, kind))
    assert near(logits(model), base, 1e-6)
    adapted = logits(stirred(model))
    assert not near(adapted, base, 0.05)
    use_adapter(model, None)
    assert torch.equal(logits(model), base)
    use_adapter(model, "default")
    merge_adapters(model)
    assert near(logits(model), adapted) and not is_quantised(model)
    assert not any(isinstance(m, AdaptedLinear) for m in model.modules())
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in model_of("qwen2").named_parameters()}
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_weight_written_out(kind: Any) -> None:
    """The layer against W + s B A (DoRA: scaled to length m) multiplied out, with the norm held constant."""
    from luthier.models.transformer import Linear

    random = torch.Generator().manual_seed(4)
    linear = Linear(24, 16)
    linear.weight = torch.nn.Parameter(torch.randn(16, 24, generator=random))
    model = model_of()
    cast(Any, model.layers[0]).self_attn.q_proj = linear
    add_adapter(model, LoraConfig(4, 8.0, kind, ("q_proj",)))
    layer = stirred(model).get_submodule("layers.0.self_attn.q_proj")
    assert isinstance(layer, AdaptedLinear)
    adapter: Any = layer.adapters["default"]
    x = torch.randn(2, 5, 24, generator=random, requires_grad=True)
    layer(x).square().sum().backward()
    mine = [x.grad, *(p.grad for p in adapter.parameters())]
    x.grad = None
    adapter.zero_grad()
    scale = 8 / 4**0.5 if kind == "rslora" else 2.0
    weight = linear.weight + scale * adapter.b @ adapter.a
    if kind == "dora":
        weight = weight * (adapter.magnitude / weight.norm(dim=1).detach())[:, None]
    (x @ weight.T).square().sum().backward()
    assert linear.weight.grad is None
    for a, b in zip(mine, [x.grad, *(p.grad for p in adapter.parameters())], strict=True):
        assert a is not None and b is not None and near(a, b)


def test_several_adapters_hang_on_one_base() -> None:
    model = model_of()
    base = logits(model)
    add_adapter(model, LoraConfig(2), "letters")
    first = logits(stirred(model, 1))
    add_adapter(model, LoraConfig(4, kind="dora", targets=("q_proj", "up_proj")), "notices")
    second = logits(stirred(model, 2))
    for name, expected in (("letters", first), (None, base), ("notices", second), ("letters", first)):
        use_adapter(model, name)
        assert torch.equal(logits(model), expected)
        assert {n.split(".adapters.")[1].split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == (
            {name} if name else set()
        )
    with pytest.raises(LoraError, match=r"no adapter 'poems'; there are letters, notices"):
        use_adapter(model, "poems")
    with pytest.raises(LoraError, match="an adapter 'letters' already"):
        add_adapter(model, name="letters")


@pytest.mark.parametrize("four_bits", [False, True])
def test_in_bfloat16(four_bits: bool) -> None:
    """Under autocast, and with all weights in bfloat16: near float32, and gradients reach the adapter."""
    model = model_of()
    if four_bits:
        quantize_base(model)
    add_adapter(model, LoraConfig(4, kind="dora"))
    exact = logits(stirred(model))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(IDS)
    assert (out.float() - exact).norm() < 0.03 * exact.norm()
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad and p.grad is not None)
    assert (logits(model.to(torch.bfloat16)).float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"kind": "loha"}, {"targets": ("query",)}])
def test_settings_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(LoraError, match=next(iter(wrong))):
        LoraConfig(**wrong)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_opens_with_the_same_logits(kind: Any, tmp_path: Path) -> None:
    model = model_of("qwen3")
    save_model(model, tmp_path / "base")
    config = LoraConfig(4, 12.0, kind, ("q_proj", "down_proj"))
    add_adapter(model, config)
    adapted = logits(stirred(model))
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", config)
    assert is_adapter(tmp_path / "adapter") and not is_adapter(tmp_path / "base")
    assert near(logits(open_model(tmp_path / "adapter")), adapted)
    again = load_model(tmp_path / "base")
    assert replace(load_adapter(again, tmp_path / "adapter", "mine"), targets=config.targets) == config
    assert torch.equal(logits(again), adapted)
    tmp_path.joinpath("moved").mkdir()
    for name in ("base", "adapter"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert base_of(tmp_path / "moved" / "adapter").resolve() == (tmp_path / "moved" / "base").resolve()


def test_a_base_in_four_bits_is_remembered(tmp_path: Path) -> None:
    model = model_of()
    save_model(model, tmp_path / "base")
    quantize_base(model)
    add_adapter(model)
    adapted = logits(stirred(model))
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", LoraConfig())
    opened = open_model(tmp_path / "adapter")
    assert is_quantised(opened) and torch.equal(logits(opened), adapted)


def test_adapters_for_other_bits_do_not_share_a_base(tmp_path: Path) -> None:
    """One base is in four bits or not: an adapter that was trained on the other would say something else."""
    save_model(model_of(), tmp_path / "base")
    for name in ("full", "four"):
        model = load_model(tmp_path / "base")
        if name == "four":
            quantize_base(model)
        add_adapter(model)
        save_adapter(model, tmp_path / name, tmp_path / "base", LoraConfig())
    for first, second, bits in (("full", "four", "four bits"), ("four", "full", "full")):
        model = load_model(tmp_path / "base")
        load_adapter(model, tmp_path / first, first)
        before = logits(model)
        with pytest.raises(LoraError, match=f"{second} was trained on a base in {bits}; here .* carries {first}, so"):
            load_adapter(model, tmp_path / second, second)
        assert torch.equal(logits(model), before)
        load_adapter(model, tmp_path / first, "again")
    model = load_model(tmp_path / "base")
    add_adapter(model)
    with pytest.raises(LoraError, match="adapters hang on this base already"):
        quantize_base(model)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_opens_ours_and_we_open_peft(kind: Any, tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = model_of("qwen2")
    save_model(model, tmp_path / "base")
    config = LoraConfig(4, 8.0, kind, TARGETS if kind != "dora" else ("q_proj", "v_proj", "down_proj"))
    add_adapter(model, config)
    adapted = logits(stirred(model))
    save_adapter(model, tmp_path / "ours", tmp_path / "base", config)

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)

    assert near(logits(peft.PeftModel.from_pretrained(base(), tmp_path / "ours").eval()), adapted)
    assert near(logits(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)), adapted)
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=list(config.targets), use_rslora=kind == "rslora", use_dora=kind == "dora",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(base(), settings).eval()
    stirred(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    raw = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == str(tmp_path / "base")
    assert near(logits(open_model(tmp_path / "theirs")), logits(theirs))


GPT2 = preset(
    "demo", vocab_size=97, hidden_size=48, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, initializer_range=0.1, model_type="gpt2", hidden_act="gelu_new",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj", "down_proj")])
def test_peft_opens_our_gpt2_and_we_open_peft(kind: Any, targets: tuple[str, ...], tmp_path: Path) -> None:
    """One product for queries, keys and values there, three here; all of them adapted, or two."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = Transformer(GPT2, seed=1).eval()
    save_model(model, tmp_path / "base")
    config = LoraConfig(4, 8.0, kind, targets)
    add_adapter(model, config)
    adapted = logits(stirred(model))
    save_adapter(model, tmp_path / "ours", tmp_path / "base", config)

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)

    assert not near(logits(base()), adapted, 1e-2)
    assert near(logits(peft.PeftModel.from_pretrained(base(), tmp_path / "ours").eval()), adapted)
    assert near(logits(open_model(tmp_path / "ours")), adapted)
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn", "c_fc", "mlp.c_proj"], use_rslora=kind == "rslora",
        use_dora=kind == "dora", fan_in_fan_out=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(base(), settings).eval()
    stirred(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert near(logits(open_model(tmp_path / "theirs")), logits(theirs))
    file = tmp_path / "theirs" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rank_pattern": {"c_attn": 5}}))
    with pytest.raises(LoraError, match="rank_pattern"):
        load_adapter(Transformer(GPT2, seed=1), tmp_path / "theirs")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    model = model_of()
    save_model(model, tmp_path / "base")
    add_adapter(model, LoraConfig(4))
    save_adapter(model, tmp_path / "a", tmp_path / "base", LoraConfig(4))
    file = tmp_path / "a" / "adapter_config.json"
    good = json.loads(file.read_text())

    def refused(match: str, onto: Transformer | None = None, **changes: Any) -> None:
        file.write_text(json.dumps({**good, **changes}))
        onto = onto or model_of()
        with pytest.raises(LoraError, match=match):
            load_adapter(onto, tmp_path / "a")
        assert not any(isinstance(m, AdaptedLinear) for m in onto.modules())

    refused("peft_type 'LOHA' is not supported", peft_type="LOHA")
    refused("not supported: modules_to_save", modules_to_save=["lm_head"])
    refused("not supported: bias = 'all'", bias="all")
    refused(r"q_proj.lora_A.weight has shape \[4, 48\], the base model asks for \[8, 48\]", r=8)
    refused("lora_magnitude_vector is missing", use_dora=True)
    refused("layers.1.mlp.down_proj is not in the model", Transformer(replace(SHAPE, num_hidden_layers=1)))
    refused(r"asks for \[4, 64\]", Transformer(replace(SHAPE, hidden_size=64)))
    file.write_text(json.dumps({**good, "base_model_name_or_path": "/nowhere"}))
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(LoraError, match=r"an adapter for the model in /nowhere, which is not there(.|\n)*base_model"):
        open_model(tmp_path / "a")
    file.write_text("{")
    with pytest.raises(LoraError, match="not valid JSON"):
        base_of(tmp_path / "a")
    file.unlink()
    with pytest.raises(LoraError, match=r"no adapter_config.json"):
        load_adapter(model_of(), tmp_path / "a")


def test_a_dense_product_of_theirs_is_not_taken_for_three_of_ours():
    """Three times the rank for c_attn is what we write, but others may choose it for an adapter of their own."""
    from luthier.models.adapter_gpt2 import THEIRS, gpt2_to_ours

    place, r, c = f"{THEIRS}0.attn.c_attn", 2, 8
    raw = {
        "r": r,
        "lora_alpha": 4,
        "use_rslora": False,
        "rank_pattern": {"c_attn": 3 * r},
        "alpha_pattern": {"c_attn": 12},
    }
    blocks = {
        f"{place}.lora_A.weight": torch.randn(3 * r, c),
        f"{place}.lora_B.weight": torch.block_diag(*torch.randn(3, c, r)),
    }
    assert not gpt2_to_ours(blocks, raw)[1]["rank_pattern"]
    other = {**raw, "alpha_pattern": {"c_attn": 12, "c_fc": 9}}
    assert gpt2_to_ours(blocks, other)[1]["alpha_pattern"] == other["alpha_pattern"]
    dense = {**blocks, f"{place}.lora_B.weight": torch.randn(3 * c, 3 * r)}
    assert gpt2_to_ours(dense, raw)[1]["rank_pattern"] == {"c_attn": 3 * r}  # which is refused where it is read


@pytest.mark.parametrize("quantised", [False, True])
def test_gpt2_where_one_pass_adds_the_bias(quantised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an adapter, without it and merged: the same losses as where the product adds the bias itself."""
    pytest.importorskip("luthier.kernels.row_loops", reason="Numba is not installed")
    model = Transformer(
        ModelConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, initializer_range=0.1, model_type="gpt2", hidden_act="gelu_new",
        )
    )  # fmt: skip
    if quantised:
        quantize_base(model)
    add_adapter(model, LoraConfig(rank=4, alpha=8, targets=("q_proj", "o_proj", "up_proj", "down_proj")))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    ids = torch.randint(0, 64, (2, 40), generator=generator)

    def losses() -> list[float]:
        found = [float(model.loss(ids, ids.roll(-1, 1))[0])]
        use_adapter(model, None)
        return [*found, float(model.loss(ids, ids.roll(-1, 1))[0])]

    expected = losses()
    monkeypatch.setattr("luthier.kernels.processor.FEWEST", 0)
    use_adapter(model, "default")
    assert losses() == pytest.approx(expected, rel=1e-6) and expected[0] != pytest.approx(expected[1], rel=1e-3)
    use_adapter(model, "default")
    assert float(merge_adapters(model).loss(ids, ids.roll(-1, 1))[0]) == pytest.approx(expected[0], rel=1e-5)
