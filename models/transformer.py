"""A decoder that reads token ids and says, at every place, how likely each token is to come next.

    ids [B, T] ─embedding [V, C]─▶ x [B, T, C]
    L times:   x = x + attention(norm(x));   x = x + feed_forward(norm(x))
    logits [B, T, V] = norm(x) · Wᵀ                            W is the embedding again where the head is tied

Two shapes of it. **Llama's** (Touvron et al. 2023, arXiv:2307.09288, §2.2), which Mistral, Qwen and SmolLM kept:
RMSNorm, rotary positions, grouped-query attention, SwiGLU, few biases or none. **GPT-2's** (Radford et al. 2019):
LayerNorm, a learned vector for each position, GELU without a gate, a bias everywhere. Parameters carry the names of
Llama in Hugging Face's library (`layers.0.self_attn.q_proj.weight`); layouts.py knows GPT-2's.

Every operation that is more than a product comes from kernels/: Triton on a card, PyTorch on a CPU.

Several documents may be packed into one row. `document_BT` says which token belongs to which: tokens of different
documents do not see each other and positions begin at 0 in each, so a packed row gives what its documents give alone.
−1 marks padding, whose output nobody reads.

Generation keeps every layer's keys and values in a `Cache`, so that a new token costs one token's work.

Training may keep of each layer only its input and compute the rest again in the backward pass: `recompute = True`
(Chen et al. 2016, arXiv:1604.06174). A third more work, and memory for one layer instead of L.

Legend: B batch, T tokens, S tokens in the cache, L layers, H query heads, K key/value heads, D head_dim, C hidden,
F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.kernels.attention import attention, document_starts, visible
from luthier.kernels.decode_attention import decode_attention
from luthier.kernels.document_attention import document_attention, document_texts
from luthier.kernels.gelu import gelu
from luthier.kernels.launch import use_triton
from luthier.kernels.layer_norm import add_layer_norm, layer_norm
from luthier.kernels.linear import linear, linears, product_and_bias
from luthier.kernels.linear_cross_entropy import linear_cross_entropy
from luthier.kernels.rms_norm import add_rms_norm, rms_norm
from luthier.kernels.rope import rope, rope_table
from luthier.kernels.swiglu import geglu, swiglu
from luthier.models.config import ModelConfig
from luthier.models.rotary import rotary_frequencies

__all__ = ["Cache", "ContextError", "Places", "Transformer"]


class ContextError(ValueError):
    """A text is longer than the model's context."""


class Cache:
    """Keys and values of what was read so far, [L, B, S, K, D] each; `first_B` is where each row's text begins.

    Rows are padded on the left, so that all of them grow at the same place.
    """

    def __init__(self, config: ModelConfig, first_B: Tensor, size: int, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.num_hidden_layers, len(first_B), size, config.num_key_value_heads, config.head_size)
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


class Places(NamedTuple):
    """Where the tokens of a batch stand and what they see: made once, used by every layer."""

    position: Tensor
    """Place of each token in its text, [T] or [B, T]."""
    cos: Tensor | None
    """Of the angles of these positions, [T, D/2] or [B, T, D/2]; None where positions are learned."""
    sin: Tensor | None
    mask_BTS: Tensor | None = None
    """Which keys each query sees, for PyTorch; None is all up to its own place."""
    first_BT: Tensor | None = None
    """The first key each query sees, for Triton, which needs no mask; None is 0."""
    window: int | None = None
    """For Triton: tokens a query looks back."""
    lengths_B: Tensor | None = None
    """Keys of each row, where Triton decodes one token a row from the cache."""
    texts_n2: Tensor | None = None
    """Documents that a CPU attends to one by one, without a mask."""


class RMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device="meta"))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of x + more, and x + more."""
        return (self(x), x) if more is None else add_rms_norm(more.to(x.dtype), x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """y = (x − mean(x)) / √(var(x) + ε) · weight + bias."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(size, device="meta")) for _ in range(2))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of x + more, and x + more."""
        return (self(x), x) if more is None else add_layer_norm(more.to(x.dtype), x, self.weight, self.bias, self.eps)


def _norm(config: ModelConfig, size: int) -> RMSNorm | LayerNorm:
    return (LayerNorm if config.layer_norm else RMSNorm)(size, config.rms_norm_eps)


class Linear(nn.Linear):
    """A product with a weight [outputs, inputs], without memory as yet."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """x · Wᵀ, without the bias."""
        return linear(x, self.weight)

    def reset_parameters(self) -> None:
        """Leave the weight to `Transformer.init`; torch would draw it from the global generator."""


class Embedding(nn.Embedding):
    """A row of `weight` [V, C] for each id, without memory as yet."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size, device="meta")

    def reset_parameters(self) -> None:
        """See `Linear`."""


class Attention(nn.Module):
    """Grouped-query attention; each query and key is turned by its position, except where positions are learned."""

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

    def heads(self, x_BTC: Tensor, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, D], keys and values [B, T, K, D]."""
        made = linears(x_BTC, self.q_proj, self.k_proj, self.v_proj)
        q_BTHD, k_BTKD, v_BTKD = (y.unflatten(-1, (-1, self.head_dim)) for y in made)
        if self.qk_norm:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        if places.cos is not None and places.sin is not None:
            q_BTHD, k_BTKD = rope(q_BTHD, places.cos, places.sin), rope(k_BTKD, places.cos, places.sin)
        return q_BTHD, k_BTKD, v_BTKD

    def forward(self, x_BTC: Tensor, places: Places, cache: Cache | None) -> Tensor:
        q_BTHD, k_BSKD, v_BSKD = self.heads(x_BTC, places)
        if cache is not None:
            k_BSKD, v_BSKD = cache.extend(self.layer, k_BSKD, v_BSKD)
        if places.lengths_B is not None:
            first_B = None if places.first_BT is None else places.first_BT[:, 0]
            out_BTHD = decode_attention(q_BTHD, k_BSKD, v_BSKD, places.lengths_B, first_B=first_B)
        elif places.texts_n2 is not None:
            out_BTHD = document_attention(q_BTHD, k_BSKD, v_BSKD, places.texts_n2)
        else:
            sees = {"first_BT": places.first_BT, "window": places.window}
            out_BTHD = attention(q_BTHD, k_BSKD, v_BSKD, places.mask_BTS, **sees)
        return self.o_proj(out_BTHD.flatten(-2))


class FeedForward(nn.Module):
    """down(act(gate(x)) ⊙ up(x)), or without a gate down(act(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, inner, bias = config.hidden_size, config.intermediate_size, config.feed_forward_bias
        if config.gated:
            self.gate_proj = Linear(C, inner, bias)
        self.up_proj = Linear(C, inner, bias)
        self.down_proj = Linear(inner, C, bias)
        self.gated, self.act = config.gated, config.hidden_act

    def forward(self, x_BTC: Tensor) -> Tensor:
        how: Any = {"approximate": "tanh" if self.act == "gelu_new" else "none"}
        if self.gated:
            gate_BTF, up_BTF = linears(x_BTC, self.gate_proj, self.up_proj)
            bent_BTF = swiglu(gate_BTF, up_BTF) if self.act == "silu" else geglu(gate_BTF, up_BTF, **how)
        elif self.act == "silu":
            bent_BTF = F.silu(self.up_proj(x_BTC))
        else:
            bent_BTF = gelu(*product_and_bias(self.up_proj, x_BTC), **how)
        return self.down_proj(bent_BTF)


class Layer(nn.Module):
    """Attention, then feed-forward, each added to the residual stream: together with the norm that follows, in one pass
    over memory. So what goes in and out is the stream and what is still to be added to it (None: nothing)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        self.mlp = FeedForward(config)

    def forward(self, x_BTC: Tensor, more: Tensor | None, places: Places, cache: Cache | None) -> tuple[Tensor, Tensor]:
        normed_BTC, x_BTC = self.input_layernorm.add(x_BTC, more)
        normed_BTC, x_BTC = self.post_attention_layernorm.add(x_BTC, self.self_attn(normed_BTC, places, cache))
        return x_BTC, self.mlp(normed_BTC)


class Transformer(nn.Module):
    """The decoder. New weights are drawn from `generator`, or from one seeded with `seed`; on the device "meta" there
    are shapes only, for weights that will be loaded. `recompute`: see the lecture above."""

    def __init__(
        self, config: ModelConfig, generator: torch.Generator | None = None, *, seed: int = 0, device: str = "cpu"
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = _norm(config, config.hidden_size)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self._tables: tuple[Tensor, Tensor] | None = None
        self._kind: tuple[object, ...] = ()
        if device != "meta":
            self.to_empty(device=device)
            self.init(generator or torch.Generator(device).manual_seed(seed))

    @torch.no_grad()
    def init(self, generator: torch.Generator) -> None:
        """Draw new weights, in the order of `named_parameters`.

        Matrices and embedding are normal with deviation initializer_range; the two products that end in the residual
        stream, of which there are 2L, are smaller by √(2L), so that the stream's spread does not grow with depth
        (Radford et al. 2019, GPT-2, §2.3). Norms begin at 1, biases at 0. By width (µP): mup.py.
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

    def hidden(
        self, ids_BT: Tensor, *, document_BT: Tensor | None = None, cache: Cache | None = None, for_loss: bool = False
    ) -> Tensor:
        """The last layer's normalised output [B, T, C], from which the head makes logits.

        `for_loss`: a loss of all of it follows. A tied weight's gradient is then that of the head with the rows of
        these ids added to it, not a second one of [V, C]. Raises ContextError for a text longer than the context.
        """
        places, weight = self._places(ids_BT, document_BT, cache), self.embed_tokens.weight
        rows = (
            for_loss
            and self.config.tie_word_embeddings
            and weight.dtype == torch.float32
            and weight.device.type == "cpu"
        )
        x_BTC, more = F.embedding(ids_BT, weight, sparse=rows), None
        if self.config.learned_positions:
            x_BTC = x_BTC + self.embed_positions(places.position)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x_BTC = x_BTC if more is None else x_BTC + more  # one tensor to keep instead of two
                x_BTC, more = checkpoint(layer, x_BTC, None, places, cache, use_reentrant=False)
            else:
                x_BTC, more = layer(x_BTC, more, places, cache)
        if cache is not None:
            cache.length += ids_BT.shape[1]
        return self.norm.add(x_BTC, more)[0]

    def forward(self, ids_BT: Tensor, *, document_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] of the next token at every place. ids: int64; document: integers, see the lecture above."""
        return F.linear(self.hidden(ids_BT, document_BT=document_BT, cache=cache), self.head_weight)

    def loss(self, ids_BT: Tensor, labels_BT: Tensor, *, document_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sum of −log p(label) in nats over the labels that are not −100, and their number.

        Labels are already shifted: `labels[:, t]` is the token that follows `ids[:, t]`.
        """
        x_BTC = self.hidden(ids_BT, document_BT=document_BT, for_loss=True)
        return linear_cross_entropy(x_BTC, self.head_weight, labels_BT)

    def _places(self, ids_BT: Tensor, document_BT: Tensor | None, cache: Cache | None) -> Places:
        """Positions, their angles, and the first key that each token sees, as the device's attention wants it."""
        T, window = ids_BT.shape[1], self.config.sliding_window
        begin = cache.length if cache is not None else 0
        end = begin + T
        place_T = torch.arange(begin, end, device=ids_BT.device)
        first_BT = None
        if document_BT is not None:
            first_BT = document_starts(document_BT)
        elif cache is not None:
            first_BT = torch.minimum(cache.first_B[:, None], place_T)  # padding sees itself
        position = place_T if first_BT is None else place_T - first_BT
        longest = end
        if first_BT is not None and end > self.config.max_position_embeddings:  # counting waits for a card
            longest = int(position.max()) + 1 if T else 0
        if longest > self.config.context:
            raise ContextError(
                f"a text of {longest:,} tokens is longer than the model's context of {self.config.context:,} tokens "
                "(max_position_embeddings in config.json): shorten it, or extend the context (models/resize.py)"
            )
        cos, sin = self._angles(position, longest)
        if use_triton("attention", "auto", self.embed_tokens.weight):
            return self._seen_on_card(Places(position, cos, sin, window=window), first_BT, end, cache)
        if first_BT is not None and not bool(first_BT.any()):
            first_BT = None
        window = window if window is not None and end > window else None
        if first_BT is not None and document_BT is not None and window is None and self._one_by_one(document_BT):
            return Places(position, cos, sin, texts_n2=document_texts(document_BT))
        if window is not None:
            oldest_T = (place_T - window + 1).clamp(min=0)
            first_BT = oldest_T[None] if first_BT is None else torch.maximum(first_BT, oldest_T)
        return Places(position, cos, sin, None if first_BT is None else visible(first_BT, end))

    def _one_by_one(self, document_BT: Tensor) -> bool:
        """Whether documents are attended to one by one: on a CPU, unless layers are compiled, for which texts of
        another size each time would be new shapes."""
        compiled = torch.compiler.is_compiling() or any(layer._compiled_call_impl is not None for layer in self.layers)
        return document_BT.device.type == "cpu" and not compiled

    def _seen_on_card(self, places: Places, first_BT: Tensor | None, end: int, cache: Cache | None) -> Places:
        """The same for Triton: no mask, and one new token a row by the kernel that splits the cache."""
        if cache is None or places.position.shape[-1] > 1 or torch.is_grad_enabled():
            return places._replace(first_BT=first_BT)
        if places.window is not None and first_BT is not None:
            first_BT = first_BT.clamp(min=end - places.window)
        lengths_B = torch.full_like(cache.first_B, end, dtype=torch.int32)
        first_BT = None if first_BT is None else first_BT.int()
        return places._replace(first_BT=first_BT, window=None, lengths_B=lengths_B)

    def _angles(self, position: Tensor, longest: int) -> tuple[Tensor | None, Tensor | None]:
        """cos and sin of the angles at these positions, from tables that grow with the texts."""
        if self.config.learned_positions:
            return None, None
        weight, scaling = self.embed_tokens.weight, self.config.rope_scaling
        changes = (
            scaling is not None and scaling.rope_type == "dynamic" and longest > self.config.max_position_embeddings
        )
        kind = (weight.device, weight.dtype, scaling, longest if changes else 0)
        if self._tables is None or self._kind != kind or len(self._tables[0]) < longest:
            rows = min(1 << max(longest - 1, 255).bit_length(), self.config.context)
            omega, scale = rotary_frequencies(self.config, longest)
            with torch.inference_mode(False):  # made while generating, they must serve training too
                self._tables = rope_table(omega.to(weight.device), rows, weight.dtype, scale=scale)
            self._kind = kind
        cos, sin = self._tables
        return cos[position], sin[position]
