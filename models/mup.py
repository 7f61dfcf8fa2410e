"""µP: new weights and learning rates whose best values do not move when a model becomes wider.

With the usual initializer a wider model wants a smaller learning rate, so that every size must be tuned anew. In the
maximal update parametrization (Yang & Hu 2021, arXiv:2011.14522; Yang et al. 2022, arXiv:2203.03466, table 3) each
matrix begins and moves in proportion to its width, so that what one step of Adam changes in the activations is the same
at every width: tune at a width C₀ that is cheap, then train at C = m·C₀ with

                              deviation of a new weight     learning rate (Adam)
    embedding, norms, biases  σ                             η
    matrices of the layers    σ / √m                        η / m
    head                      σ / m                         η / m

σ is initializer_range; products that end in the residual stream are smaller by √(2L) besides, as in
transformer.py. Only widths are meant: keep head_dim (more heads instead), the ratio of intermediate_size to
hidden_size, and the number of layers. The head must be a matrix of its own, for a tied one would need both rules.
"""

from __future__ import annotations

import math

import torch

from luthier.models.config import ModelConfigError
from luthier.models.transformer import Transformer

__all__ = ["init_by_width", "rates_by_width"]


@torch.no_grad()
def init_by_width(model: Transformer, base_width: int, generator: torch.Generator | None = None) -> None:
    """Draw the weights anew by µP; `base_width` is the hidden_size at which σ and η were tuned.

    `generator` is seeded with 0 unless given. Raises ModelConfigError for a tied head.
    """
    m = _times(model, base_width)
    model.init(generator or torch.Generator(model.embed_tokens.weight.device).manual_seed(0))
    for name, weight in model.named_parameters():
        if _is_matrix(name, weight):
            weight.div_(math.sqrt(m))
    model.lm_head.weight.div_(m)


def rates_by_width(model: Transformer, base_width: int) -> dict[str, float]:
    """What each parameter's learning rate is to be multiplied by, for Adam and AdamW."""
    m = _times(model, base_width)
    narrow = {n for n, w in model.named_parameters() if _is_matrix(n, w)} | {"lm_head.weight"}
    return {name: 1 / m if name in narrow else 1.0 for name, _ in model.named_parameters()}


def _times(model: Transformer, base_width: int) -> float:
    if model.config.tie_word_embeddings:
        raise ModelConfigError("µP needs a head of its own: set tie_word_embeddings = false")
    if base_width < 1:
        raise ModelConfigError(f"base_width = {base_width}: must be greater than zero")
    return model.config.hidden_size / base_width


def _is_matrix(name: str, weight: torch.Tensor) -> bool:
    return name.startswith("layers.") and weight.dim() == 2
