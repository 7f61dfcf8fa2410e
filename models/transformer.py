"""A decoder that reads token ids and says, at every place, how likely each token is to come next.

    ids [B, T] ─embedding [V, C]─▶ x [B, T, C]
    L times:   x = x + attention(RMSNorm(x));   x = x + swiglu(RMSNorm(x))
    logits [B, T, V] = RMSNorm(x) · Wᵀ                         W is the embedding again where the head is tied

This is the shape that Llama 2 settled (Touvron et al. 2023, arXiv:2307.09288, §2.2) and that Mistral, Qwen and SmolLM
kept: norms before each part, rotary positions, grouped-query attention, SwiGLU, no biases. Parameters carry Hugging
Face's names (`layers.0.self_attn.q_proj.weight`), so that checkpoints map one to one.

Several documents may be packed into one row. `document_BT` says which token belongs to which: tokens of different
documents do not see each other and positions begin at 0 in each, so a packed row gives what its documents give alone.
−1 marks padding, a document like any other whose output nobody reads.

Generation keeps every layer's keys and values in a `Cache`, so that a new token costs one token's work.

Legend: B batch, T tokens, S tokens in the cache, L layers, H query heads, K key/value heads, D head_dim, C hidden,
F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.attention import attention, document_starts, visible
from luthier.kernels.linear_cross_entropy import linear_cross_entropy
from luthier.kernels.rms_norm import rms_norm
from luthier.kernels.rope import frequencies, llama3_frequencies, rope, rope_table
from luthier.kernels.swiglu import swiglu
from luthier.models.config import ModelConfig

__all__ = ["Cache", "ContextError", "Transformer"]


class ContextError(ValueError):
    """A text is longer than the model's context."""


class Cache:
    """Keys and values of what was read so far, [L, B, S, K, D] each; `first_B` is where each row's text begins.

    Rows are padded on the left, so that all of them grow at the same place.
    """

    def __init__(self, config: ModelConfig, first_B: Tensor, size: int, dtype: torch.dtype = torch.float32) -> None:
        shape = (
            config.num_hidden_layers,
            len(first_B),
            size,
            config.num_key_value_heads,
            config.head_size,
        )
        self.k, self.v = (torch.empty(shape, dtype=dtype, device=first_B.device) for _ in range(2))
        self.first_B = first_B
        self.length = 0

    def extend(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values behind the old; returns all of them, [B, S, K, D]."""
        end = self.length + k_BTKD.shape[1]
        self.k[layer, :, self.length : end] = k_BTKD
        self.v[layer, :, self.length : end] = v_BTKD
        return self.k[layer, :, :end], self.v[layer, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (int64 indices)."""
        self.k, self.v, self.first_B = self.k[:, rows], self.v[:, rows], self.first_B[rows]


class RMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device="meta"))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Linear):
    """A product with a weight [outputs, inputs], without memory as yet."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias, device="meta")

    def reset_parameters(self) -> None:
        """Leave the weight to `Transformer.init`; torch would draw it from the global generator."""


class Embedding(nn.Embedding):
    """A row of `weight` [V, C] for each id, without memory as yet."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size, device="meta")

    def reset_parameters(self) -> None:
        """See `Linear`."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        C, D = config.hidden_size, config.head_size
        q, kv = config.num_attention_heads * D, config.num_key_value_heads * D
        self.q_proj = Linear(C, q, config.qkv_bias)
        self.k_proj = Linear(C, kv, config.qkv_bias)
        self.v_proj = Linear(C, kv, config.qkv_bias)
        self.o_proj = Linear(q, C, config.output_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(D, config.rms_norm_eps), RMSNorm(D, config.rms_norm_eps)
        self.qk_norm, self.head_dim, self.layer = config.qk_norm, D, layer

    def forward(self, x_BTC: Tensor, cos: Tensor, sin: Tensor, mask_BTS: Tensor | None, cache: Cache | None) -> Tensor:
        heads = (-1, self.head_dim)
        q_BTHD = self.q_proj(x_BTC).unflatten(-1, heads)
        k_BTKD = self.k_proj(x_BTC).unflatten(-1, heads)
        v_BTKD = self.v_proj(x_BTC).unflatten(-1, heads)
        if self.qk_norm:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        q_BTHD, k_BTKD = rope(q_BTHD, cos, sin), rope(k_BTKD, cos, sin)
        if cache is not None:
            k_BTKD, v_BTKD = cache.extend(self.layer, k_BTKD, v_BTKD)
        return self.o_proj(attention(q_BTHD, k_BTKD, v_BTKD, mask_BTS).flatten(-2))


class FeedForward(nn.Module):
    """down(silu(gate(x)) ⊙ up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x_BTC), self.up_proj(x_BTC)))


class Layer(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTC: Tensor, cos: Tensor, sin: Tensor, mask_BTS: Tensor | None, cache: Cache | None) -> Tensor:
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), cos, sin, mask_BTS, cache)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))


class Transformer(nn.Module):
    """The decoder. New weights are drawn from `generator`, or from one seeded with `seed`; on the device "meta" there
    are shapes only, for weights that will be loaded."""

    def __init__(
        self, config: ModelConfig, generator: torch.Generator | None = None, *, seed: int = 0, device: str = "cpu"
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self._tables: tuple[Tensor, Tensor] | None = None
        if device != "meta":
            self.to_empty(device=device)
            self.init(generator or torch.Generator(device).manual_seed(seed))

    @torch.no_grad()
    def init(self, generator: torch.Generator) -> None:
        """Draw new weights, in the order of `named_parameters`.

        Matrices and embedding are normal with deviation initializer_range; the two products that end in the residual
        stream, of which there are 2L, are smaller by √(2L), so that the stream's spread does not grow with depth
        (Radford et al. 2019, GPT-2, §2.3). Norms begin at 1, biases at 0.
        """
        std = self.config.initializer_range
        small = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, weight in self.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                ends = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0.0, small if ends else std, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """The weight of the last product, [V, C]."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden(self, ids_BT: Tensor, *, document_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The last layer's normalised output [B, T, C], from which the head makes logits.

        Raises ContextError for a text longer than max_position_embeddings.
        """
        cos, sin, mask_BTS = self._places(ids_BT, document_BT, cache)
        x_BTC = self.embed_tokens(ids_BT)
        for layer in self.layers:
            x_BTC = layer(x_BTC, cos, sin, mask_BTS, cache)
        if cache is not None:
            cache.length += ids_BT.shape[1]
        return self.norm(x_BTC)

    def forward(self, ids_BT: Tensor, *, document_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of the next token at every place. ids: int64; document: integers, see the lecture above."""
        return F.linear(self.hidden(ids_BT, document_BT=document_BT, cache=cache), self.head_weight)

    def loss(self, ids_BT: Tensor, labels_BT: Tensor, *, document_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum of −log p(label) in nats over the labels that are not −100, and their number.

        Labels are already shifted: `labels[:, t]` is the token that follows `ids[:, t]`.
        """
        return linear_cross_entropy(self.hidden(ids_BT, document_BT=document_BT), self.head_weight, labels_BT)

    def _places(
        self, ids_BT: Tensor, document_BT: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """cos and sin of every token's position, and the mask (None for plain causal attention)."""
        T, window = ids_BT.shape[1], self.config.sliding_window
        begin = cache.length if cache is not None else 0
        place_T = torch.arange(begin, begin + T, device=ids_BT.device)
        first_BT = None
        if document_BT is not None:
            first_BT = document_starts(document_BT)
        elif cache is not None:
            first_BT = torch.minimum(cache.first_B[:, None], place_T)  # padding sees itself
        if first_BT is not None and not bool(first_BT.any()):
            first_BT = None
        longest = begin + T if first_BT is None else int((place_T - first_BT).max()) + 1 if T else 0
        if longest > self.config.max_position_embeddings:
            raise ContextError(
                f"a text of {longest:,} tokens is longer than the model's context of "
                f"{self.config.max_position_embeddings:,} (max_position_embeddings)"
            )
        cos, sin = self._rope_tables()
        position = place_T if first_BT is None else place_T - first_BT
        if window is not None and longest > window:
            oldest_T = (place_T - window + 1).clamp(min=0)
            first_BT = oldest_T[None] if first_BT is None else torch.maximum(first_BT, oldest_T)
        mask_BTS = None if first_BT is None else visible(first_BT, begin + T)
        return cos[position], sin[position], mask_BTS

    def _rope_tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin [max_position_embeddings, D/2], made at first use and again after a move to another device."""
        weight = self.embed_tokens.weight
        if self._tables is None or self._tables[0].device != weight.device or self._tables[0].dtype != weight.dtype:
            omega = frequencies(self.config.head_size, self.config.rope_theta)
            if (s := self.config.rope_scaling) is not None:
                omega = llama3_frequencies(
                    omega,
                    factor=s.factor,
                    low=s.low_freq_factor,
                    high=s.high_freq_factor,
                    context=s.original_max_position_embeddings,
                )
            with torch.inference_mode(False):  # made while generating, they must serve training too
                self._tables = rope_table(omega.to(weight.device), self.config.max_position_embeddings, weight.dtype)
        return self._tables
