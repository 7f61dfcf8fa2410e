"""Hugging Face's spelling of a decoder: the keys of its config.json and the names of its tensors, family by family.

Llama, Mistral, Qwen and SmolLM use our names with `model.` before them, but for `lm_head.weight`. GPT-2 has names of
its own, stores every matrix transposed ([inputs, outputs], as its first TensorFlow code did) and queries, keys and
values side by side in one:

    transformer.wte.weight, wpe.weight, ln_f.*           embed_tokens.weight, embed_positions.weight, norm.*
    transformer.h.N.ln_1.*, ln_2.*                       layers.N.input_layernorm.*, post_attention_layernorm.*
    transformer.h.N.attn.c_attn [C, 3C]                  layers.N.self_attn.q_proj, k_proj, v_proj, [C, C] each
    transformer.h.N.attn.c_proj, mlp.c_fc, mlp.c_proj    layers.N.self_attn.o_proj, mlp.up_proj, mlp.down_proj

A setting that would change the logits and is not supported is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.models.config import ModelConfig, ModelConfigError, RopeScaling

__all__ = ["ARCHITECTURES", "config_from_json", "config_to_json", "full_name", "harmless", "to_ours", "to_theirs"]

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",  # Llama 2 and 3, SmolLM and SmolLM2
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",  # and Qwen 2.5
    "Qwen3ForCausalLM": "qwen3",
    "GPT2LMHeadModel": "gpt2",
}
# What a family's config.json may leave out, with the values that transformers then takes.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6},
    "mistral": {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"rms_norm_eps": 1e-6, "num_key_value_heads": 32},
    "qwen3": {"rms_norm_eps": 1e-6, "num_key_value_heads": 32, "head_dim": 128},
    "gpt2": {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
}
# Settings that change the logits, with the only value that is supported.
FIXED: dict[str, Any] = {
    "partial_rotary_factor": 1.0,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new"}
ACTIVATIONS |= {"swish": "silu"}

# ---------------------------------------------------------------- config.json


def config_from_json(raw: dict[str, Any], family: str) -> ModelConfig:
    """Hugging Face's keys into ours. Raises ModelConfigError for what is not supported, KeyError for a key missing."""
    raw = LEFT_OUT[family] | raw
    if family == "gpt2":
        raw |= {ours: raw[theirs] for ours, theirs in GPT2_KEYS.items() if theirs != "n_inner"}
        raw["intermediate_size"] = raw.get("n_inner") or 4 * raw["hidden_size"]
    rope = _rope(raw)
    for key, supported in FIXED.items():
        if (found := rope.get(key, raw.get(key, supported))) != supported:
            raise ModelConfigError(f"{key} = {found!r} is not supported, only {supported!r}")
    if (act := raw.get("hidden_act", "silu")) not in ACTIVATIONS:
        raise ModelConfigError(f"hidden_act = {act!r} is not supported; those are {', '.join(ACTIVATIONS)}")
    if "quantization_config" in raw:
        raise ModelConfigError("the weights are quantised (quantization_config); take the folder of the plain model")
    heads, P = raw["num_attention_heads"], raw["max_position_embeddings"]
    return ModelConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim"),
        hidden_act=ACTIVATIONS[act],  # pyright: ignore[reportArgumentType]
        max_position_embeddings=P,
        rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
        rope_scaling=None if family == "gpt2" else _scaling(rope, P),
        rms_norm_eps=raw["rms_norm_eps"],
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        model_type=family,  # pyright: ignore[reportArgumentType]
        attention_bias=family in ("llama", "qwen3") and bool(raw.get("attention_bias")),
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias")),
        sliding_window=_window(raw, family),
        initializer_range=raw.get("initializer_range", 0.02),
    )


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions: rope_parameters in transformers 5, rope_theta and rope_scaling in 4."""
    new, old = raw.get("rope_parameters"), raw.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and (not isinstance(value, dict) or any(isinstance(x, dict) for x in value.values())):
            raise ModelConfigError(f"{key} = {value!r} is not supported, only one set of numbers for all layers")
    return new or {"rope_theta": raw.get("rope_theta", 10_000.0)} | (old or {})


def _window(raw: dict[str, Any], family: str) -> int | None:
    """Tokens a query looks back. Mistral's window is every layer's; Qwen's, where it is on, those layers' from
    max_window_layers on: often none."""
    if family == "mistral":
        return raw.get("sliding_window")
    if family not in ("qwen2", "qwen3") or not raw.get("use_sliding_window") or raw.get("sliding_window", 0) is None:
        return None
    first, layers = raw.get("max_window_layers", 28), raw["num_hidden_layers"]
    if "sliding_attention" in raw["layer_types"] if raw.get("layer_types") else first < layers:
        raise ModelConfigError(
            f"use_sliding_window is true (max_window_layers = {first} of {layers} layers), which is supported for "
            "MistralForCausalLM only, where it is every layer's"
        )
    return None


def _scaling(rope: dict[str, Any], context: int) -> RopeScaling | None:
    """Scaled rotary positions; a length that is left out is max_position_embeddings."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    original = rope.get("original_max_position_embeddings") or context
    needed = {"linear": ["factor"], "dynamic": ["factor"], "llama3": ["factor", "low_freq_factor", "high_freq_factor"]}
    if lacking := [key for key in needed.get(kind, []) if key not in rope]:
        raise ModelConfigError(f"rope scaling {kind!r} has no {' and no '.join(lacking)}, which it needs")
    if kind == "llama3":
        given = {key: rope[key] for key in ("low_freq_factor", "high_freq_factor")}
    elif kind == "yarn":
        given = {key: rope[key] for key in ("beta_fast", "beta_slow", "attention_factor") if rope.get(key)}
        given |= {"truncate": rope.get("truncate", True)}
        if rope.get("mscale") and rope.get("mscale_all_dim") and "attention_factor" not in given:
            raise ModelConfigError("rope scaling 'yarn' with mscale is not supported; give attention_factor")
    elif kind in ("linear", "dynamic"):
        given = {}
    else:
        return RopeScaling(rope_type=kind)  # which refuses what it does not know
    factor = rope["factor"] if rope.get("factor") or kind != "yarn" else context / original
    return RopeScaling(rope_type=kind, factor=factor, original_max_position_embeddings=original, **given)


def config_to_json(config: ModelConfig, dtype: torch.dtype, tokens: dict[str, Any]) -> dict[str, Any]:
    """Ours into Hugging Face's keys, the spelling that transformers 4 and 5 both read."""
    architecture = next(name for name, family in ARCHITECTURES.items() if family == config.model_type)
    shared = ("vocab_size", "tie_word_embeddings", "initializer_range")
    named = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    named += ("max_position_embeddings", "rms_norm_eps", "hidden_act")
    keys = GPT2_KEYS if config.model_type == "gpt2" else {}
    raw: dict[str, Any] = {"architectures": [architecture], "model_type": config.model_type}
    raw |= {name: getattr(config, name) for name in shared}
    raw |= {keys.get(name, name): getattr(config, name) for name in named}
    raw |= {"torch_dtype": str(dtype).removeprefix("torch."), "use_cache": True, **tokens}
    if config.model_type == "gpt2":
        return raw | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # 0.1 unless said
    raw |= {"num_key_value_heads": config.num_key_value_heads, "head_dim": config.head_size}
    raw |= {"rope_theta": config.rope_theta, "rope_scaling": _scaling_to_json(config.rope_scaling)}
    if config.hidden_act == "gelu_new":
        raw["hidden_act"] = "gelu_pytorch_tanh"
    if config.model_type in ("llama", "qwen3"):
        raw["attention_bias"] = config.attention_bias
    if config.model_type == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if config.model_type == "mistral":
        raw["sliding_window"] = config.sliding_window
    return raw


def _scaling_to_json(s: RopeScaling | None) -> dict[str, Any] | None:
    """The keys that belong to the kind of scaling."""
    if s is None:
        return None
    keys = ["rope_type", "factor"]
    if s.rope_type in ("yarn", "llama3"):
        keys += ["original_max_position_embeddings"]
    keys += ["low_freq_factor", "high_freq_factor"] if s.rope_type == "llama3" else []
    if s.rope_type == "yarn":
        keys += ["beta_fast", "beta_slow", "truncate", *(["attention_factor"] if s.attention_factor else [])]
    return {key: getattr(s, key) for key in keys}


# ---------------------------------------------------------------- tensors

GPT2_NAMES = {
    "embed_tokens": "wte",
    "embed_positions": "wpe",
    "norm": "ln_f",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
GPT2_OURS = {theirs: ours for ours, theirs in GPT2_NAMES.items()}
PRODUCTS = ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
LAYER = re.compile(r"(?:transformer\.h|layers)\.(\d+)\.(.+)")


def to_theirs(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Our tensors under Hugging Face's names, in its shapes. On the device "meta" it says which are expected."""
    if family != "gpt2":
        return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in state.items()}
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        place, _, kind = name.rpartition(".")
        layer, part = _split(place)
        if part in ("self_attn.k_proj", "self_attn.v_proj"):
            continue  # with q_proj
        if part == "self_attn.q_proj":
            joint = torch.cat([state[f"{place[:-6]}{which}_proj.{kind}"] for which in "qkv"])
            theirs[f"transformer.h.{layer}.attn.c_attn.{kind}"] = joint.T.contiguous() if kind == "weight" else joint
        elif name == "lm_head.weight":
            theirs[name] = tensor
        else:
            found = GPT2_NAMES[part]
            turned = tensor.T.contiguous() if kind == "weight" and found in PRODUCTS else tensor
            theirs[f"transformer.{f'h.{layer}.' if layer else ''}{found}.{kind}"] = turned
    return theirs


def to_ours(name: str, tensor: Tensor, family: str) -> dict[str, Tensor]:
    """One of Hugging Face's tensors as ours, of which it may be several."""
    if family != "gpt2":
        return {name.removeprefix("model."): tensor}
    if name == "lm_head.weight":
        return {name: tensor}
    place, _, kind = name.rpartition(".")
    layer, part = _split(place)
    if part == "attn.c_attn":
        thirds = (tensor.T if kind == "weight" else tensor).chunk(3)
        return {f"layers.{layer}.self_attn.{w}_proj.{kind}": t.contiguous() for w, t in zip("qkv", thirds, strict=True)}
    turned = tensor.T.contiguous() if kind == "weight" and part in PRODUCTS else tensor
    return {f"{f'layers.{layer}.' if layer else ''}{GPT2_OURS[part.removeprefix('transformer.')]}.{kind}": turned}


def _split(place: str) -> tuple[str, str]:
    """Number of the layer and what it is in it; no number outside the layers."""
    found = LAYER.fullmatch(place)
    return (found[1], found[2]) if found else ("", place)


def full_name(name: str, family: str) -> str:
    """The name with its prefix, which the first GPT-2 folders left out."""
    bare = family == "gpt2" and not name.startswith(("transformer.", "lm_head."))
    return f"transformer.{name}" if bare else name


def harmless(name: str, family: str) -> bool:
    """Whether a tensor of old folders follows from config.json: rotary frequencies, GPT-2's causal masks."""
    mask = family == "gpt2" and name.endswith((".attn.bias", ".attn.masked_bias"))
    return mask or name.endswith("rotary_emb.inv_freq")
