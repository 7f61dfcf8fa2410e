"""GGUF: a model in one file, as llama.cpp reads it (github.com/ggml-org/ggml, docs/gguf.md, version 3).

    "GGUF" 3  tensor count  key count
    keys      name, type, value                        the decoder's shape, the tokenizer
    tensors   name, dimensions, type, offset           the fastest dimension first: [rows, columns] is (columns, rows)
    data      every tensor at a multiple of 32 bytes

**q8_0** (8.5 bits a weight): a row is cut into blocks of 32; a block is its largest magnitude over 127 as float16, then
32 signed bytes. **f16** rounds to float16. Norms and biases stay float32 in both.

**Rotary positions.** Hugging Face's Llama turns feature i with feature i + D/2, llama.cpp's `llama` turns neighbours:
the rows of q and k of each head are put in the order 0, D/2, 1, D/2 + 1, … Its `qwen2` and `qwen3` turn as Hugging
Face does. **Scaled positions** (linear, yarn, llama3) are said to `llama` as how many times slower each pair turns, and
by what cosine and sine are multiplied; dynamic ones depend on the text's length, for which there is no word.

**GPT-2** has q, k and v in one matrix there, and its positions always in float32.
"""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.models.config import ModelConfig
from luthier.models.rotary import rotary_frequencies
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.formats import spell

__all__ = ["GgufError", "GgufType", "quantize_q8_0", "save_gguf"]

GgufType = Literal["f16", "q8_0"]
F32, F16, Q8_0 = 0, 1, 8  # ggml's numbers of tensor types
FILE_TYPES = {"f16": 1, "q8_0": 7}
ALIGNMENT, BLOCK = 32, 32
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
SPLITTERS = {"gpt2": "gpt-2", "smollm": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2"}
NORMAL, CONTROL = 1, 3  # types of tokens
ROPE_FACTORS = "rope_freqs.weight"
POSITIONS = "position_embd.weight"
OUTER = {
    "embed_tokens.weight": "token_embd.weight",
    "embed_positions.weight": POSITIONS,
    "norm.weight": "output_norm.weight",
    "norm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
}
INNER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


class GgufError(ValueError):
    """A model or tokenizer cannot be said in GGUF."""


def save_gguf(
    model: Transformer, tokenizer: Tokenizer, path: Path, kind: GgufType = "f16", *, name: str = "", stop_id: int = -1
) -> None:
    """Write model and tokenizer to `path`, whole or not at all; `stop_id` ends an answer (the tokenizer's end of text).

    Raises GgufError for what llama.cpp's format has no word for.
    """
    _check(model.config, tokenizer)
    keys = {**_shape(model.config, kind, name), **_tokens(tokenizer, model.config.vocab_size, stop_id)}
    tensors = _tensors(model)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_head(keys, tensors, kind))
            for name, tensor in tensors.items():
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                file.write(_bytes(tensor, _type(name, tensor, kind)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def quantize_q8_0(x: np.ndarray) -> np.ndarray:
    """Blocks of float32 [N, 32] as bytes [N, 34]: a float16 scale and 32 signed bytes."""
    scale = np.abs(x).max(1, keepdims=True) / 127
    with np.errstate(divide="ignore", invalid="ignore"):
        rounded = np.where(scale > 0, np.round(x / scale), 0).astype(np.int8)
    return np.concatenate([scale.astype("<f2").view(np.uint8), rounded.view(np.uint8)], axis=1)


def _check(config: ModelConfig, tokenizer: Tokenizer) -> None:
    pattern = getattr(tokenizer, "pattern", None)  # SentencePiece's have none
    gpt2 = config.model_type == "gpt2"
    scaling, act = config.rope_scaling and config.rope_scaling.rope_type, "gelu_new" if gpt2 else "silu"
    wrong = {
        f"models of the type {config.model_type}": config.model_type not in ARCHITECTURES,
        "a sliding window": config.sliding_window is not None,
        f"{scaling} rotary positions of the type {config.model_type}": scaling is not None
        and (scaling == "dynamic" or ARCHITECTURES.get(config.model_type) != "llama"),
        "attention with biases of the type qwen3": config.model_type == "qwen3" and config.attention_bias,
        f"a feed-forward part with {config.hidden_act}": config.hidden_act != act,
        "a tokenizer of SentencePiece's pieces": pattern is None,
        f"a tokenizer that splits by {pattern!r}": pattern not in SPLITTERS,
        "a tokenizer with a normalizer": bool(tokenizer.normalizer),
    }
    for what, is_so in wrong.items():
        if is_so:
            raise GgufError(f"{what} cannot be exported to GGUF yet\nThe Hugging Face folder holds the same model.")


# ---------------------------------------------------------------- what is said of the model


def _shape(config: ModelConfig, kind: GgufType, name: str) -> dict[str, Any]:
    """The keys that describe the decoder. A whole number is stored as uint32, a broken one as float32."""
    arch = ARCHITECTURES[config.model_type]
    keys = {
        "general.architecture": arch,
        "general.name": name or "luthier",
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        f"{arch}.vocab_size": config.vocab_size,
        f"{arch}.context_length": config.context,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
    }
    if arch == "gpt2":
        return {**keys, f"{arch}.attention.layer_norm_epsilon": float(config.rms_norm_eps)}
    keys |= {
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_size,
        f"{arch}.attention.value_length": config.head_size,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.rope.dimension_count": config.head_size,
        f"{arch}.rope.freq_base": float(config.rope_theta),
    }
    scale = rotary_frequencies(config)[1]
    return {**keys, f"{arch}.rope.scaling.attn_factor": float(scale)} if scale != 1 else keys


def _tokens(tokenizer: Tokenizer, rows: int, stop_id: int) -> dict[str, Any]:
    """The keys that describe the tokenizer; rows that no token has are control tokens of a name of their own."""
    special = set(tokenizer.special_tokens.values())
    tokens = [spell(token) if i not in special else token.decode() for i, token in enumerate(tokenizer.tokens)]
    tokens += [f"<|unused{i}|>" for i in range(len(tokens), rows)]
    kinds = [CONTROL if i in special or i >= len(tokenizer.tokens) else NORMAL for i in range(rows)]
    pairs = [f"{spell(tokenizer.tokens[a])} {spell(tokenizer.tokens[b])}" for a, b in tokenizer.merges]
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": SPLITTERS[tokenizer.pattern],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.eos_token_id": stop_id if stop_id >= 0 else tokenizer.eos_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": False,
    }
    return {**keys, **({"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})}


def _theirs(name: str) -> str:
    """llama.cpp's name of a weight."""
    if name in OUTER:
        return OUTER[name]
    _, layer, rest = name.split(".", 2)
    inner, end = rest.rsplit(".", 1)
    return f"blk.{layer}.{INNER[inner]}.{end}"


def _tensors(model: Transformer) -> dict[str, Tensor]:
    """All weights by llama.cpp's names, in its order of features."""
    config = model.config
    ours = {name: _turned(name, p.detach().cpu(), config) for name, p in model.named_parameters()}
    if config.model_type == "gpt2":
        joined = {}
        for name, tensor in ours.items():
            if ".q_proj." in name:
                three = [ours[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
                joined[name.replace("q_proj", "qkv_proj")] = torch.cat(three)
            elif ".k_proj." not in name and ".v_proj." not in name:
                joined[name] = tensor
        ours = joined
    tensors = {_theirs(name): tensor for name, tensor in ours.items()}
    if config.rope_scaling is not None:
        plain = rotary_frequencies(replace(config, rope_scaling=None))[0]
        tensors[ROPE_FACTORS] = plain / rotary_frequencies(config)[0]
    return tensors


def _turned(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """q and k in the order of features in which llama.cpp's `llama` turns them."""
    if ARCHITECTURES[config.model_type] != "llama" or not name.split(".")[-2].startswith(("q_proj", "k_proj")):
        return weight
    D = config.head_size
    return weight.view(-1, 2, D // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


# ---------------------------------------------------------------- bytes


def _head(keys: dict[str, Any], tensors: dict[str, Tensor], kind: GgufType) -> bytes:
    """Everything before the data, filled up to the alignment."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(_string(key) + _value(value) for key, value in keys.items())
    offset = 0
    for name, tensor in tensors.items():
        of = _type(name, tensor, kind)
        dims = tensor.shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, of, offset)
        offset += _size(tensor, of)
        offset += -offset % ALIGNMENT
    return head + b"\0" * (-len(head) % ALIGNMENT)


def _type(name: str, tensor: Tensor, kind: GgufType) -> int:
    if tensor.dim() == 1 or name == POSITIONS:
        return F32
    return Q8_0 if kind == "q8_0" and tensor.shape[-1] % BLOCK == 0 else F16


def _size(tensor: Tensor, of: int) -> int:
    return {F32: 4 * tensor.numel(), F16: 2 * tensor.numel(), Q8_0: tensor.numel() // BLOCK * (BLOCK + 2)}[of]


def _bytes(tensor: Tensor, of: int) -> bytes:
    x = tensor.float().numpy()
    if of == F32:
        return x.astype("<f4").tobytes()
    return x.astype("<f2").tobytes() if of == F16 else quantize_q8_0(x.reshape(-1, BLOCK)).tobytes()


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, list):
        code, one = (8, _string) if value and isinstance(value[0], str) else (5, lambda n: struct.pack("<i", n))
        return struct.pack("<IIQ", 9, code if value else 8, len(value)) + b"".join(map(one, value))
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    code, form = (7, "?") if isinstance(value, bool) else (4, "I") if isinstance(value, int) else (6, "f")
    return struct.pack(f"<I{form}", code, value)
