"""How fast each pair of components turns with the position, for contexts longer than those a model was trained with.

The rules are in kernels/rope.py; which of them a model follows, and with which numbers, is in its config.
"""

from __future__ import annotations

from torch import Tensor

from luthier.kernels.rope import frequencies, llama3_frequencies, yarn_frequencies, yarn_scale
from luthier.models.config import ModelConfig

__all__ = ["rotary_frequencies"]


def rotary_frequencies(config: ModelConfig, longest: int = 0) -> tuple[Tensor, float]:
    """ω [D/2] and what cos and sin are multiplied by; `longest` is the length of the text, which dynamic looks at."""
    D, base, s = config.head_size, config.rope_theta, config.rope_scaling
    if s is None:
        return frequencies(D, base), 1.0
    L = config.max_position_embeddings if s.rope_type in ("linear", "dynamic") else s.original_max_position_embeddings
    if s.rope_type == "linear":
        return frequencies(D, base) / s.factor, 1.0
    if s.rope_type == "dynamic":
        stretch = s.factor * max(longest, L) / L - (s.factor - 1)
        return frequencies(D, base * stretch ** (D / (D - 2))), 1.0
    if s.rope_type == "llama3":
        bounds = {"low": s.low_freq_factor, "high": s.high_freq_factor}
        return llama3_frequencies(frequencies(D, base), factor=s.factor, context=L, **bounds), 1.0
    bounds = {"fast": s.beta_fast, "slow": s.beta_slow, "whole": s.truncate}
    omega = yarn_frequencies(frequencies(D, base), factor=s.factor, context=L, **bounds)
    return omega, yarn_scale(s.factor) if s.attention_factor is None else s.attention_factor
