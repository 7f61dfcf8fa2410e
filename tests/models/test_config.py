"""Counts against the model's own tensors, and numbers that do not fit together."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from luthier.models.config import (
    ModelConfig,
    ModelConfigError,
    RopeScaling,
    cache_bytes,
    flops_per_token,
    initializer_said,
    parameter_count,
    preset,
    presets,
    training_bytes,
)


@pytest.mark.parametrize("name", list(presets))
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"model_type": "qwen2"}, {"model_type": "qwen3"}, {"model_type": "gpt2"}],
)
def test_parameter_count_is_what_the_model_has(name: str, changes: dict[str, Any]) -> None:
    from luthier.models.transformer import Transformer

    family, biases = changes.get("model_type", "llama"), [{"attention_bias": True}]
    if family == "gpt2":
        changes = changes | {"num_key_value_heads": presets[name].num_attention_heads}
    biases += [{"mlp_bias": True}] if family == "llama" else []
    for more in ({}, *(biases if family in ("llama", "qwen3") else [])):
        config = preset(name, num_hidden_layers=2, **changes, **more)
        model = Transformer(config, device="meta")
        assert parameter_count(config) == sum(p.numel() for p in model.parameters())


def test_presets_go_from_the_demo_to_a_billion() -> None:
    counts = [parameter_count(config) for config in presets.values()]
    assert counts == sorted(counts) and 2.2e6 < counts[0] < 3e6 and counts[-1] > 1e9


def test_work_of_a_model_counted_by_hand() -> None:
    """C = 4, H = K = 1, D = 4, F = 8, L = 1, V = 10, T = 6, tied: 4·16 + 3·32 + 8 + 4 = 172 weights in layer and norm
    and 40 in the head take 2·212 = 424 operations; attention looks at 3 keys on average: 4·4·3 = 48."""
    config = ModelConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=6,
    )
    assert parameter_count(config) == 212 and parameter_count(config, embedding=False) == 172
    assert flops_per_token(config) == 424 + 48
    assert flops_per_token(config, context=2) == 424 + 16
    assert cache_bytes(config, 10) == 2 * 4 * 10 * 4
    assert training_bytes(config, 0) == 16 * 212


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"num_attention_heads": 7}, ["num_attention_heads = 7", "num_key_value_heads = 2"]),
        ({"num_attention_heads": 10}, ["num_attention_heads = 10", "hidden_size = 192"]),
        ({"num_attention_heads": 1}, ["num_key_value_heads = 2"]),
        ({"num_attention_heads": 500, "num_key_value_heads": 500}, ["num_attention_heads = 500", "hidden_size = 192"]),
        ({"head_dim": 33}, ["head_dim = 33"]),
        ({"num_attention_heads": 64}, ["head_dim = 3"]),
        ({"vocab_size": 0}, ["vocab_size = 0"]),
        ({"vocab_size": 10**18}, ["vocab_size = 1,000,000,000,000,000,000", "2,147,483,647 at most"]),
        ({"num_hidden_layers": 10**6}, ["num_hidden_layers = 1,000,000", "10,000 at most"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers = -1"]),
        ({"model_type": "bert"}, ["model_type", "qwen3", "gpt2"]),
        ({"model_type": "gpt2"}, ["num_key_value_heads = 6"]),
        ({"mlp_bias": True, "model_type": "qwen2"}, ["mlp_bias", "qwen2"]),
        ({"hidden_act": "relu"}, ["hidden_act", "silu"]),
        (
            {"rope_scaling": RopeScaling(), "model_type": "gpt2", "num_key_value_heads": 6},
            ["rope_scaling", "gpt2", "learned"],
        ),
        ({"sliding_window": 8}, ["sliding_window", "mistral"]),
        ({"attention_bias": True, "model_type": "qwen2"}, ["attention_bias", "qwen2"]),
    ],
)
def test_numbers_that_do_not_fit_are_named(changes: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(ModelConfigError) as error:
        replace(ModelConfig(), **changes)
    assert all(field in str(error.value) for field in fields), error.value


@pytest.mark.parametrize("value", [np.int64(96), np.uint16(96)])
def test_numpys_numbers_are_numbers(value: Any) -> None:
    scaling: dict[str, Any] = {"factor": np.int32(4)}
    numbers: dict[str, Any] = {"hidden_size": value, "rope_theta": np.float32(500)}
    config = ModelConfig(**numbers, rope_scaling=RopeScaling(**scaling))
    assert json.loads(json.dumps(asdict(config))) == asdict(
        ModelConfig(hidden_size=96, rope_theta=500.0, rope_scaling=RopeScaling(factor=4))
    )
    for wrong in (np.int64(0), np.float64(96), np.bool_(True), True, "96"):
        with pytest.raises(ModelConfigError, match=r"hidden_size = .*whole number"):
            replace(ModelConfig(), **{"hidden_size": wrong})


def test_an_unknown_preset_is_told_those_there_are() -> None:
    with pytest.raises(ModelConfigError, match=r"demo \(2 M\)"):
        preset("huge")


def test_the_module_needs_no_torch() -> None:
    import subprocess
    import sys

    program = "import sys, luthier.models.config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize(
    ("changes", "word"), [({"rope_type": "ntk"}, "ntk"), ({"factor": 0.5}, "0.5"), ({"beta_slow": 40.0}, "beta_slow")]
)
def test_scaling_that_cannot_be_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelConfigError, match=word):
        RopeScaling(**changes)


def test_how_far_scaled_positions_reach() -> None:
    context = lambda **s: ModelConfig(rope_scaling=RopeScaling(**s)).context  # noqa: E731
    assert ModelConfig().context == context() == 256
    assert context(rope_type="linear", factor=4) == context(rope_type="dynamic", factor=4) == 1024
    assert context(rope_type="yarn", factor=4, original_max_position_embeddings=128) == 512


def test_the_initializer_is_told_as_it_is() -> None:
    """The numbers of the line are those of new weights."""
    from luthier.models.transformer import Transformer

    config = preset("demo")
    said, model = initializer_said(config), Transformer(config)
    assert said.startswith("normal, deviation 0.02; o_proj and down_proj 0.02 / √(2·4) = 0.0071 (Radford et al. 2019")
    assert abs(float(model.embed_tokens.weight.detach().std()) - 0.02) < 2e-4
    assert abs(float(model.get_parameter("layers.0.mlp.down_proj.weight").detach().std()) - 0.0071) < 2e-4
