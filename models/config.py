"""The shape of a decoder: its numbers by Hugging Face's names, what they add up to, and sizes that work.

Legend: V vocab_size, C hidden_size, L num_hidden_layers, H num_attention_heads, K num_key_value_heads, D head_size,
F intermediate_size, P max_position_embeddings.

**Parameters.** V·C for the embedding (again for an untied head), and in each layer 2·C·H·D for queries and output,
2·C·K·D for keys and values, 3·C·F for the feed-forward part, 2·C for two norms; C for the last norm. GPT-2 has no gate
(2·C·F), a bias with every product and norm, and P·C for learned positions.

**Work.** A product with a weight takes 2 operations a weight and token (Kaplan et al. 2020, arXiv:2001.08361, §2.1).
Attention adds 4·H·D for each key a token looks at, T/2 of them on average in a text of T tokens. The backward pass
takes twice the forward pass, so a training step 3 times.

**Memory of training.** 16 bytes a parameter in float32: weight, gradient, two moments of AdamW; and what the forward
pass keeps for the backward pass, 4·C + 2·H·D + 2·K·D + 3·F numbers a token and layer. With gradients on their way back
and room that the C library does not find again, processes were seen to hold about 8·C + 2·H·D + 4·K·D + 4·F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

__all__ = [
    "ModelConfig",
    "ModelConfigError",
    "RopeScaling",
    "Scaling",
    "cache_bytes",
    "flops_per_token",
    "initializer_said",
    "parameter_count",
    "preset",
    "presets",
    "training_bytes",
]

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gpt2"]
Activation = Literal["silu", "gelu", "gelu_new"]
Scaling = Literal["linear", "dynamic", "yarn", "llama3"]


class ModelConfigError(ValueError):
    """A decoder's numbers do not fit together, or no preset has that name."""


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotary frequencies ω, so that a model reads texts longer than it was trained on. The defaults: Llama 3.1.

    linear     ω / factor: every position is squeezed (Chen et al. 2023, arXiv:2306.15595, eq. 4)
    dynamic    a larger base, so that the fastest pair stays and the slowest turns factor·n/P − factor + 1 times slower
               in a text of n tokens, P being max_position_embeddings; shorter texts are as before (YaRN's paper, §3.3)
    yarn       ω / factor for pairs that turn less than beta_slow times within the original context, ω for those that
               turn more than beta_fast times, a mixture between; and sharper attention (Peng et al. 2023,
               arXiv:2309.00071, §3.2 and §3.4)
    llama3     as yarn in kind, mixed by frequency (Grattafiori et al. 2024, arXiv:2407.21783, §3.4); kernels/rope.py
    """

    rope_type: Scaling = "llama3"
    """Which of the four."""
    factor: float = 8.0
    """How many times slower the lowest frequencies turn."""
    original_max_position_embeddings: int = 8192
    """Tokens of context the model was first trained on (yarn and llama3; the others take max_position_embeddings)."""
    low_freq_factor: float = 1.0
    """llama3: pairs that turn less often than this within the original context are slowed in full."""
    high_freq_factor: float = 4.0
    """llama3: pairs that turn more often than this within the original context stay as they are."""
    beta_fast: float = 32.0
    """yarn: pairs that turn more often than this within the original context stay as they are."""
    beta_slow: float = 1.0
    """yarn: pairs that turn less often than this within the original context are slowed in full."""
    attention_factor: float | None = None
    """yarn: what queries and keys are each multiplied by; None is 0.1·ln(factor) + 1."""
    truncate: bool = True
    """yarn: whether the two bounds are rounded outward to whole pairs."""

    def __post_init__(self) -> None:
        if self.rope_type not in get_args(Scaling):
            raise ModelConfigError(f"rope_type = {self.rope_type!r}: choose one of {', '.join(get_args(Scaling))}")
        for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            _positive(self, name)
        if self.factor < 1:
            raise ModelConfigError(f"rope scaling factor = {self.factor}: must be 1 or more")
        if not (self.low_freq_factor < self.high_freq_factor and self.beta_slow < self.beta_fast):
            raise ModelConfigError("rope scaling: low_freq_factor < high_freq_factor and beta_slow < beta_fast needed")
        _positive(self, "original_max_position_embeddings", Integral)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of Llama's shape, or GPT-2's. The defaults are the preset `demo`."""

    vocab_size: int = 4096
    """Number of token ids (V)."""
    hidden_size: int = 192
    """Width of the residual stream (C)."""
    intermediate_size: int = 512
    """Width of the feed-forward part (F); 8/3 of the hidden size keeps SwiGLU as large as a plain layer of 4 times the
    hidden size (Shazeer 2020, arXiv:2002.05202, §3)."""
    num_hidden_layers: int = 4
    """Number of layers (L)."""
    num_attention_heads: int = 6
    """Query heads (H)."""
    num_key_value_heads: int = 2
    """Key and value heads (K), each shared by H/K query heads (Ainslie et al. 2023, arXiv:2305.13245)."""
    head_dim: int | None = None
    """Width of a head (D), even; None is hidden_size / num_attention_heads."""
    hidden_act: Activation = "silu"
    """What bends the feed-forward part: silu, gelu (by the error function) or gelu_new (by tanh). It opens the gate
    that the other half passes, except in gpt2, which has no gate."""
    max_position_embeddings: int = 256
    """The longest text in tokens, before any scaling of positions."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021, arXiv:2104.09864, §3.2.2)."""
    rope_scaling: RopeScaling | None = None
    """Slowed frequencies for contexts longer than those first trained on; none by default."""
    rms_norm_eps: float = 1e-5
    """Added under the norm's root (GPT-2's config.json calls it layer_norm_epsilon)."""
    tie_word_embeddings: bool = True
    """Whether the head's weight is the embedding's (Press & Wolf 2017, arXiv:1608.05859)."""
    model_type: Family = "llama"
    """Which family's layout: qwen2 has biases on q, k and v; qwen3 normalises each query and key head; mistral may look
    back through a sliding window; gpt2 has LayerNorm, learned positions, biases and no gate."""
    attention_bias: bool = False
    """Biases on all four products of attention (llama and qwen3 only; gpt2 always has them)."""
    mlp_bias: bool = False
    """Biases on the products of the feed-forward part (llama only; gpt2 always has them)."""
    sliding_window: int | None = None
    """Tokens a query looks back, itself included (mistral only); none by default."""
    initializer_range: float = 0.02
    """Standard deviation of a new weight (Radford et al. 2019, GPT-2)."""

    def __post_init__(self) -> None:
        whole = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*whole, "num_key_value_heads", "max_position_embeddings"):
            _positive(self, name, Integral)
            most = 10_000 if name == "num_hidden_layers" else 2**31 - 1  # more is a slip, and no memory holds it
            if getattr(self, name) > most:
                raise ModelConfigError(f"{name} = {getattr(self, name):,}: may be {most:,} at most")
        for name in ("rope_theta", "initializer_range", "rms_norm_eps"):
            _positive(self, name)
        for name in ("head_dim", "sliding_window"):
            if getattr(self, name) is not None:
                _positive(self, name, Integral)
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ModelConfigError(f"{name} = {getattr(self, name)!r}: must be true or false")
        H, K = self.num_attention_heads, self.num_key_value_heads
        if K > H or H % K:
            raise ModelConfigError(
                f"num_attention_heads = {H} cannot share num_key_value_heads = {K}: choose a divisor of {H}"
            )
        if self.head_dim is None and self.hidden_size % H:
            raise ModelConfigError(
                f"num_attention_heads = {H} do not fit into hidden_size = {self.hidden_size}: "
                "choose a divisor of it, or give a head_dim in config.json"
            )
        if self.hidden_size % H and self.model_type == "llama":
            raise ModelConfigError(
                f"num_attention_heads = {H} do not divide hidden_size = {self.hidden_size}, as transformers demands of "
                "llama; with model_type 'mistral' in config.json, the same decoder, they need not"
            )
        if (self.head_size % 2 or self.head_size < 2) and not self.learned_positions:
            raise ModelConfigError(
                f"head_dim = {self.head_size} (hidden_size / num_attention_heads unless set) must be even: "
                "rotary positions turn pairs"
            )
        if self.model_type not in get_args(Family):
            raise ModelConfigError(f"model_type = {self.model_type!r}: choose one of {', '.join(get_args(Family))}")
        if self.attention_bias and self.model_type not in ("llama", "qwen3"):
            raise ModelConfigError(f"attention_bias has no place in model_type = {self.model_type!r} (llama, qwen3)")
        if self.mlp_bias and self.model_type != "llama":
            raise ModelConfigError(f"mlp_bias has no place in model_type = {self.model_type!r} (llama)")
        if self.hidden_act not in get_args(Activation):
            raise ModelConfigError(f"hidden_act = {self.hidden_act!r}: choose one of {', '.join(get_args(Activation))}")
        if self.model_type == "gpt2":
            if K != H or self.head_size * H != self.hidden_size:
                raise ModelConfigError(
                    "gpt2 has as many key heads as query heads and no head_dim of its own: set "
                    f"num_key_value_heads = {H} and head_dim = None"
                )
            if self.rope_scaling is not None:
                raise ModelConfigError("rope_scaling has no place in gpt2, whose positions are learned")
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic" and self.head_size < 4:
            raise ModelConfigError("dynamic rope scaling needs a head_dim of 4 or more")
        if self.sliding_window is not None and self.model_type != "mistral":
            raise ModelConfigError(f"sliding_window needs model_type = 'mistral', found {self.model_type!r}")

    @property
    def head_size(self) -> int:
        """Width of a head (D): head_dim, or hidden_size / num_attention_heads."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def context(self) -> int:
        """The longest text in tokens, with positions scaled. Published folders count the original context in
        max_position_embeddings for linear and dynamic, either for yarn, the extended one for llama3."""
        s, P = self.rope_scaling, self.max_position_embeddings
        if s is None or s.rope_type == "llama3":
            return P
        return max(P, round(s.factor * (s.original_max_position_embeddings if s.rope_type == "yarn" else P)))

    @property
    def qkv_bias(self) -> bool:
        """Whether the products that make queries, keys and values have biases."""
        return self.attention_bias or self.model_type in ("qwen2", "gpt2")

    @property
    def output_bias(self) -> bool:
        """Whether attention's last product has a bias."""
        return self.attention_bias or self.model_type == "gpt2"

    @property
    def feed_forward_bias(self) -> bool:
        """Whether the feed-forward part's products have biases."""
        return self.mlp_bias or self.model_type == "gpt2"

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate (Shazeer 2020, arXiv:2002.05202)."""
        return self.model_type != "gpt2"

    @property
    def layer_norm(self) -> bool:
        """Whether norms subtract the mean and have a bias."""
        return self.model_type == "gpt2"

    @property
    def learned_positions(self) -> bool:
        """Whether each position has a learned vector, instead of turned queries and keys."""
        return self.model_type == "gpt2"

    @property
    def qk_norm(self) -> bool:
        """Whether each query and key head is normalised before it is turned (Henry et al. 2020, arXiv:2010.04245)."""
        return self.model_type == "qwen3"


def _positive(config: Any, name: str, kind: type = Real) -> None:
    """Refuse what is no such number; NumPy's numbers become Python's, which JSON knows."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
        what = "whole number" if kind is Integral else "number"
        raise ModelConfigError(f"{name} = {value!r}: must be a {what} greater than zero")
    object.__setattr__(config, name, int(value) if isinstance(value, Integral) else float(value))


def parameter_count(config: ModelConfig, *, embedding: bool = True) -> int:
    """Number of weights; a tied head counts once. `embedding=False` leaves embedding, positions and head out."""
    C, D, F = config.hidden_size, config.head_size, config.intermediate_size
    q, kv = config.num_attention_heads * D, config.num_key_value_heads * D
    norm, inner = C * (1 + config.layer_norm), F * (1 + config.gated)
    layer = 2 * C * q + 2 * C * kv + C * inner + F * C + 2 * norm
    layer += (q + 2 * kv) * config.qkv_bias + C * config.output_bias + 2 * D * config.qk_norm
    layer += (inner + C) * config.feed_forward_bias
    tables = config.vocab_size * C * (1 if config.tie_word_embeddings else 2)
    tables += config.max_position_embeddings * C * config.learned_positions
    return tables * embedding + config.num_hidden_layers * layer + norm


def flops_per_token(config: ModelConfig, context: int | None = None) -> float:
    """Floating-point operations of a forward pass for a token; training takes 3 times as many.

    `context` is the length of the texts in tokens; None means max_position_embeddings.
    """
    T = context or config.max_position_embeddings
    seen = min(T / 2, config.sliding_window or T)
    C, H, D = config.hidden_size, config.num_attention_heads, config.head_size
    weights = parameter_count(config, embedding=False) + config.vocab_size * C  # the head is a product, a lookup is not
    return 2.0 * weights + 4.0 * config.num_hidden_layers * H * D * seen


def initializer_said(config: ModelConfig) -> str:
    """How new weights are drawn (`Transformer.init`), with the source, in a line."""
    std, ends = config.initializer_range, config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
    return (
        f"normal, deviation {std:g}; o_proj and down_proj {std:g} / √(2·{config.num_hidden_layers}) = {ends:.2g} "
        "(Radford et al. 2019, GPT-2, §2.3); norms 1, biases 0"
    )


def cache_bytes(config: ModelConfig, tokens: int, bytes_per_number: int = 4) -> int:
    """Bytes of keys and values kept for `tokens` tokens while generating."""
    kv = config.num_key_value_heads * config.head_size
    return 2 * config.num_hidden_layers * kv * tokens * bytes_per_number


def training_bytes(config: ModelConfig, tokens: int) -> int:
    """Bytes a training step over `tokens` tokens needs in float32 with AdamW, roughly: see the lecture above."""
    q, kv = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    kept = config.num_hidden_layers * (8 * config.hidden_size + 2 * q + 4 * kv + 4 * config.intermediate_size)
    return 16 * parameter_count(config) + 4 * tokens * kept


_SMALL = ModelConfig()

presets: dict[str, ModelConfig] = {
    "demo": _SMALL,
    "tiny": replace(
        _SMALL,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "small": replace(
        _SMALL,
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    ),
    # The shapes of SmolLM-135M and SmolLM2-360M (Allal et al. 2025, arXiv:2502.02737): deep and narrow.
    "medium": replace(
        _SMALL,
        vocab_size=32_000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
    ),
    "large": replace(
        _SMALL,
        vocab_size=32_000,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        max_position_embeddings=2048,
    ),
    # The shape of Llama 3.2 1B (Grattafiori et al. 2024, arXiv:2407.21783) with a vocabulary of half the size.
    "1b": replace(
        _SMALL,
        vocab_size=65_536,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        rope_theta=500_000.0,
    ),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A preset by name with some fields changed: `preset("demo", vocab_size=2048)`. Raises ModelConfigError."""
    if name not in presets:
        sizes = ", ".join(f"{n} ({parameter_count(c) / 1e6:,.0f} M)" for n, c in presets.items())
        raise ModelConfigError(f"no model preset '{name}'; there are {sizes}")
    return replace(presets[name], **changes)
