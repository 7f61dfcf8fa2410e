"""The shape of a decoder: its numbers by Hugging Face's names, what they add up to, and sizes that work.

Legend: V vocab_size, C hidden_size, L num_hidden_layers, H num_attention_heads, K num_key_value_heads, D head_size,
F intermediate_size.

**Parameters.** V·C for the embedding (again for an untied head), and in each layer 2·C·H·D for queries and output,
2·C·K·D for keys and values, 3·C·F for the feed-forward part, 2·C for two norms; C for the last norm.

**Work.** A product with a weight takes 2 operations a weight and token (Kaplan et al. 2020, arXiv:2001.08361, §2.1).
Attention adds 4·H·D for each key a token looks at, T/2 of them on average in a text of T tokens. The backward pass
takes twice the forward pass, so a training step 3 times.

**Memory of training.** 16 bytes a parameter in float32: weight, gradient, two moments of AdamW; and what the forward
pass keeps for the backward pass, some 8·C + 2·H·D + 4·K·D + 4·F numbers a token and layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

__all__ = [
    "ModelConfig",
    "ModelConfigError",
    "RopeScaling",
    "cache_bytes",
    "flops_per_token",
    "parameter_count",
    "preset",
    "presets",
    "training_bytes",
]

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


class ModelConfigError(ValueError):
    """A decoder's numbers do not fit together, or no preset has that name."""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's slowing of the low rotary frequencies for longer contexts; see kernels/rope.py."""

    factor: float = 8.0
    """How many times slower the lowest frequencies turn. Default: Llama 3.1."""
    low_freq_factor: float = 1.0
    """Pairs that turn less often than this within the original context are slowed in full."""
    high_freq_factor: float = 4.0
    """Pairs that turn more often than this within the original context stay as they are."""
    original_max_position_embeddings: int = 8192
    """Tokens of context the model was first trained on."""


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-shaped decoder. The defaults are the preset `demo`."""

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
    max_position_embeddings: int = 256
    """The longest text in tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021, arXiv:2104.09864, §3.2.2)."""
    rope_scaling: RopeScaling | None = None
    """Slowed frequencies for contexts longer than those first trained on; none by default."""
    rms_norm_eps: float = 1e-5
    """Added under RMSNorm's root."""
    tie_word_embeddings: bool = True
    """Whether the head's weight is the embedding's (Press & Wolf 2017, arXiv:1608.05859)."""
    model_type: Family = "llama"
    """Which family's layout: qwen2 has biases on q, k and v; qwen3 normalises each query and key head; mistral may look
    back through a sliding window."""
    attention_bias: bool = False
    """Biases on all four products of attention (llama and qwen3 only)."""
    sliding_window: int | None = None
    """Tokens a query looks back, itself included (mistral only); none by default."""
    initializer_range: float = 0.02
    """Standard deviation of a new weight (Radford et al. 2019, GPT-2)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            _positive(name, getattr(self, name))
        for name in ("num_key_value_heads", "max_position_embeddings", "rope_theta", "initializer_range"):
            _positive(name, getattr(self, name))
        H, K = self.num_attention_heads, self.num_key_value_heads
        if K > H or H % K:
            raise ModelConfigError(
                f"num_attention_heads = {H} cannot share num_key_value_heads = {K}: choose a divisor of {H}"
            )
        if self.head_dim is None and self.hidden_size % H:
            raise ModelConfigError(
                f"num_attention_heads = {H} do not fit into hidden_size = {self.hidden_size}: "
                "choose a divisor of it, or set head_dim"
            )
        if self.head_size % 2 or self.head_size < 2:
            raise ModelConfigError(
                f"head_dim = {self.head_size} (hidden_size / num_attention_heads unless set) must be even: "
                "rotary positions turn pairs"
            )
        if self.model_type not in get_args(Family):
            raise ModelConfigError(f"model_type = {self.model_type!r}: choose one of {', '.join(get_args(Family))}")
        if self.attention_bias and self.model_type not in ("llama", "qwen3"):
            raise ModelConfigError(f"attention_bias has no place in model_type = {self.model_type!r} (llama, qwen3)")
        if self.sliding_window is not None:
            _positive("sliding_window", self.sliding_window)
            if self.model_type != "mistral":
                raise ModelConfigError(f"sliding_window needs model_type = 'mistral', found {self.model_type!r}")

    @property
    def head_size(self) -> int:
        """Width of a head (D): head_dim, or hidden_size / num_attention_heads."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def qkv_bias(self) -> bool:
        """Whether the products that make queries, keys and values have biases."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def output_bias(self) -> bool:
        """Whether attention's last product has a bias."""
        return self.attention_bias

    @property
    def qk_norm(self) -> bool:
        """Whether each query and key head is normalised before it is turned (Henry et al. 2020, arXiv:2010.04245)."""
        return self.model_type == "qwen3"


def _positive(name: str, value: float) -> None:
    if value <= 0:
        raise ModelConfigError(f"{name} = {value}: must be greater than zero")


def parameter_count(config: ModelConfig, *, embedding: bool = True) -> int:
    """Number of weights; a tied head counts once. `embedding=False` leaves embedding and head out."""
    C, D = config.hidden_size, config.head_size
    q, kv = config.num_attention_heads * D, config.num_key_value_heads * D
    layer = 2 * C * q + 2 * C * kv + 3 * C * config.intermediate_size + 2 * C
    layer += (q + 2 * kv) * config.qkv_bias + C * config.output_bias + 2 * D * config.qk_norm
    tables = config.vocab_size * C * (1 if config.tie_word_embeddings else 2)
    return tables * embedding + config.num_hidden_layers * layer + C


def flops_per_token(config: ModelConfig, context: int | None = None) -> float:
    """Floating-point operations of a forward pass for a token; training takes 3 times as many.

    `context` is the length of the texts in tokens; None means max_position_embeddings.
    """
    T = context or config.max_position_embeddings
    seen = min(T / 2, config.sliding_window or T)
    C, H, D = config.hidden_size, config.num_attention_heads, config.head_size
    weights = parameter_count(config, embedding=False) + config.vocab_size * C  # the head is a product, a lookup is not
    return 2.0 * weights + 4.0 * config.num_hidden_layers * H * D * seen


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
