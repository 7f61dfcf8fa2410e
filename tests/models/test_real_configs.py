"""What config.json says in folders that many people use: read as it stands, with the parameters that were published and
those that `transformers` counts; shapes only, no weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.models.checkpoints import CheckpointError, load_config
from luthier.models.config import ModelConfig, RopeScaling, parameter_count
from luthier.models.transformer import Transformer

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
QWEN2: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu"}
QWEN3: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu"}
MISTRAL: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu"}
LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def sizes(C: int, F: int, L: int, H: int, K: int, V: int, P: int) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip((*names, "vocab_size", "max_position_embeddings"), (C, F, L, H, K, V, P), strict=True))


# Name: (config.json without what a decoder does not need, parameters, what else must have been understood).
REAL: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "SmolLM2-135M": (
        LLAMA
        | sizes(576, 1536, 30, 9, 3, 49152, 8192)
        | {"attention_bias": False, "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None}
        | {"rope_theta": 100000, "rms_norm_eps": 1e-05, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
        | {"mlp_bias": False, "pretraining_tp": 1, "initializer_range": 0.041666666666666664},
        134_515_008,
        {"rope_theta": 100000, "head_size": 64, "context": 8192},
    ),
    "TinyLlama-1.1B": (
        LLAMA
        | sizes(2048, 5632, 22, 32, 4, 32000, 2048)
        | {"rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "rope_theta": 10000.0},
        1_100_048_384,
        {"tie_word_embeddings": False},
    ),
    "Llama-2-7b": (
        LLAMA
        | sizes(4096, 11008, 32, 32, 32, 32000, 4096)
        | {"rms_norm_eps": 1e-05, "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False},
        6_738_415_616,
        {"rope_theta": 10_000.0, "context": 4096},
    ),
    "Llama-3.2-1B": (
        LLAMA
        | sizes(2048, 8192, 16, 32, 8, 128256, 131072)
        | {"head_dim": 64, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True}
        | {"rope_scaling": LLAMA_3_1 | {"factor": 32.0}, "attention_bias": False, "mlp_bias": False},
        1_235_814_400,
        {"rope_scaling": RopeScaling("llama3", 32.0), "context": 131072, "rope_theta": 500000.0},
    ),
    "Llama-3.1-8B": (
        LLAMA
        | sizes(4096, 14336, 32, 32, 8, 128256, 131072)
        | {"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "rope_scaling": LLAMA_3_1},
        8_030_261_248,
        {"rope_scaling": RopeScaling("llama3", 8.0)},
    ),
    "Qwen2.5-0.5B": (
        QWEN2
        | sizes(896, 4864, 24, 14, 2, 151936, 32768)
        | {"max_window_layers": 24, "sliding_window": 32768, "use_sliding_window": False, "use_mrope": False}
        | {"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": True},
        494_032_768,
        {"sliding_window": None, "qkv_bias": True},
    ),
    "Qwen2.5-7B-Instruct, its window on, its scaling as the model card has it": (
        QWEN2
        | sizes(3584, 18944, 28, 28, 4, 152064, 32768)
        | {"max_window_layers": 28, "sliding_window": 131072, "use_sliding_window": True, "tie_word_embeddings": False}
        | {"rms_norm_eps": 1e-06, "rope_theta": 1000000.0}
        | {"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}},
        7_615_616_512,
        {"sliding_window": None, "context": 131072},  # the window begins at layer 28: in none
    ),
    "Qwen3-0.6B": (
        QWEN3
        | sizes(1024, 3072, 28, 16, 8, 151936, 40960)
        | {"head_dim": 128, "attention_bias": False, "max_window_layers": 28, "sliding_window": None}
        | {"use_sliding_window": False, "rms_norm_eps": 1e-06, "rope_theta": 1000000, "tie_word_embeddings": True}
        | {"rope_scaling": None},
        596_049_920,
        {"head_size": 128, "qk_norm": True},
    ),
    "Qwen3-0.6B, as transformers 5 writes it": (
        QWEN3
        | sizes(1024, 3072, 28, 16, 8, 151936, 40960)
        | {
            "head_dim": 128,
            "attention_bias": False,
            "max_window_layers": 28,
            "sliding_window": None,
            "dtype": "bfloat16",
        }
        | {"use_sliding_window": False, "rms_norm_eps": 1e-06, "layer_types": ["full_attention"] * 28}
        | {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}},
        596_049_920,
        {"rope_theta": 1000000, "rope_scaling": None},
    ),
    "Mistral-7B-v0.1": (
        MISTRAL
        | sizes(4096, 14336, 32, 32, 8, 32000, 32768)
        | {"sliding_window": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False},
        7_241_732_096,
        {"sliding_window": 4096},
    ),
    "Mistral-7B-v0.3": (
        MISTRAL
        | sizes(4096, 14336, 32, 32, 8, 32768, 32768)
        | {"sliding_window": None, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "tie_word_embeddings": False},
        7_248_023_552,
        {"sliding_window": None, "rope_theta": 1000000.0},
    ),
    "Mistral-Nemo": (
        MISTRAL
        | sizes(5120, 14336, 40, 32, 8, 131072, 131072)
        | {"head_dim": 128, "sliding_window": None, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0},
        12_247_782_400,
        {"head_size": 128, "tie_word_embeddings": False},
    ),
    "gpt2": (
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024}
        | {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
        | {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-05}
        | {"summary_type": "cls_index", "task_specific_params": {"text-generation": {"do_sample": True}}},
        124_439_808,
        {"tie_word_embeddings": True, "intermediate_size": 3072, "hidden_act": "gelu_new", "context": 1024},
    ),
}


def written(folder: Path, raw: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("name", REAL)
def test_real_configs(name: str, tmp_path: Path) -> None:
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode

    raw, parameters, understood = REAL[name]
    config = load_config(written(tmp_path, raw))
    assert parameter_count(config) == parameters
    assert sum(p.numel() for p in Transformer(config, device="meta").parameters()) == parameters
    with FakeTensorMode():
        theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert theirs.num_parameters() == parameters
    assert {key: getattr(config, key) for key in understood} == understood
    assert config.rms_norm_eps == raw.get("rms_norm_eps", raw.get("layer_norm_epsilon"))


SMALL = LLAMA | sizes(48, 80, 4, 4, 2, 89, 64) | {"rms_norm_eps": 1e-05}
SMALL_QWEN = SMALL | QWEN2 | {"sliding_window": 8, "use_sliding_window": True}


def config_of(folder: Path, **changes: Any) -> ModelConfig:
    return load_config(written(folder, SMALL | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (SMALL_QWEN | {"max_window_layers": 2}, ["use_sliding_window", "max_window_layers = 2", "4 layers"]),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor", "0.5"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters", "full_attention"]),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]}}, ["mrope", "yarn"]),
        ({"hidden_size": "48"}, ["config.json", "hidden_size", "'48'"]),
        ({"num_hidden_layers": None}, ["config.json", "num_hidden_layers"]),
        ({"vocab_size": 89.5}, ["config.json", "vocab_size", "89.5"]),
        ({"rms_norm_eps": "1e-5"}, ["config.json", "rms_norm_eps"]),
        ({"rope_scaling": "yarn"}, ["config.json", "rope_scaling"]),
        ({"tie_word_embeddings": "false"}, ["config.json", "tie_word_embeddings"]),
    ],
)
def test_what_is_not_understood_is_named(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        config_of(tmp_path, **changes)
    assert all(word in str(error.value) for word in words), error.value


def test_a_window_that_begins_behind_the_last_layer_is_none(tmp_path: Path) -> None:
    """max_window_layers is 28 where it is left out, and layer_types, where they are there, are what counts."""
    for more in ({}, {"max_window_layers": 4}, {"max_window_layers": 0, "layer_types": ["full_attention"] * 4}):
        assert config_of(tmp_path, **SMALL_QWEN, **more).sliding_window is None
    assert config_of(tmp_path, **SMALL_QWEN | {"max_window_layers": 0, "sliding_window": None}).sliding_window is None
    with pytest.raises(CheckpointError, match="use_sliding_window"):
        config_of(tmp_path, **SMALL_QWEN, layer_types=["full_attention"] * 3 + ["sliding_attention"])


def test_a_config_without_architectures_is_known_by_its_type(tmp_path: Path) -> None:
    """transformers' AutoModelForCausalLM goes by model_type too."""
    raw = {key: value for key, value in SMALL.items() if key != "architectures"}
    assert load_config(written(tmp_path, raw)) == config_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"phi3.*LlamaForCausalLM"):
        load_config(written(tmp_path, raw | {"model_type": "phi3"}))


@pytest.mark.parametrize(
    "old",
    [
        {"type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2},
        {"rope_type": "llama3", **{k: v for k, v in LLAMA_3_1.items() if k != "rope_type"}},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "type": "yarn", "factor": 4.0},
    ],
)
def test_both_spellings_of_scaling_say_the_same_as_transformers(old: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    from luthier.models.rotary import rotary_frequencies

    raw = SMALL | {"rope_theta": 5000.0, "rope_scaling": old}
    config = load_config(written(tmp_path, raw))
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in stored  # version 5's spelling
    assert replace(load_config(tmp_path), head_dim=None) == config
    model = transformers.LlamaModel(theirs)
    omega, scale = rotary_frequencies(config)
    assert torch.allclose(omega.float(), model.rotary_emb.inv_freq, rtol=1e-6)
    assert scale == pytest.approx(model.rotary_emb.attention_scaling)
