"""µP: new weights and learning rates whose best values do not move when a model becomes wider.

With the usual initializer a wider model wants a smaller learning rate, so that every size must be tuned anew. In the
maximal update parametrization (Yang & Hu 2021, arXiv:2011.14522; Yang et al. 2022, arXiv:2203.03466, tables 3 and 8)
each matrix begins and moves in proportion to its width, so that what one step changes in the activations is the same at
every width: tune at a width C₀ that is cheap, then train at C = m·C₀ with

                              begins with            learning rate, AdamW    Muon
    embedding, norms, biases  as ever                η
    matrices of the layers    deviation σ / √m       η / m                   η / √m
    a head of its own         deviation σ / m        η / m
    a tied head: last norm    1 / m (its bias 0)     η / m

σ is initializer_range; products that end in the residual stream are smaller by √(2L) besides, as in transformer.py.

**A tied head** cannot follow both the embedding's rule and the head's. Table 8 leaves its weight to the embedding's and
multiplies the logits by 1/m. Here the last norm's scale g is that multiplier: (g/m ⊙ x) Wᵀ = (g ⊙ x) Wᵀ / m, and Adam,
whose steps do not depend on a gradient's size, moves g/m as it moves g if its rate is η/m. So the folder that is
written is like any other, and opens elsewhere with equal logits.

**Muon** makes all singular values of a step equal, so that it changes an output by η·0.2·√max(rows, columns)
(optimizers.py) and not, as Adam's does, by η·columns: √m is left to divide by (Yang, Simon & Bernstein 2023,
arXiv:2310.17813).

**Decay** of a weight a step stays η·λ at all widths, as in the authors' github.com/microsoft/mup, so λ grows as the
rate falls.

Only widths are meant: keep head_dim (more heads instead), the ratio of intermediate_size to hidden_size, and the number
of layers. Where head_dim stays, attention's scale may stay 1/√D; the paper's 1/D is for heads that grow.
"""

from __future__ import annotations

import math

import torch

from luthier.models.config import ModelConfig, ModelConfigError
from luthier.models.transformer import Transformer

__all__ = ["init_by_width", "mup_said", "rates_by_width"]


@torch.no_grad()
def init_by_width(model: Transformer, base_width: int, generator: torch.Generator | None = None) -> None:
    """Draw the weights anew by µP; `base_width` is the hidden_size at which σ and η were tuned.

    `generator` is seeded with 0 unless given.
    """
    m = _times(model.config, base_width)
    model.init(generator or torch.Generator(model.embed_tokens.weight.device).manual_seed(0))
    for name, weight in model.named_parameters():
        if _is_matrix(name, weight):
            weight.div_(math.sqrt(m))
        elif _makes_logits(name, model.config):
            weight.div_(m)


def rates_by_width(model: Transformer, base_width: int) -> dict[str, float]:
    """What each parameter's learning rate is to be multiplied by, for Adam and AdamW; for Muon, by the root of it."""
    m = _times(model.config, base_width)
    return {
        name: 1 / m if _is_matrix(name, weight) or _makes_logits(name, model.config) else 1.0
        for name, weight in model.named_parameters()
    }


def mup_said(config: ModelConfig, base_width: int) -> str:
    """How new weights are drawn (`init_by_width`), with the source, in a line."""
    m, std, L = _times(config, base_width), config.initializer_range, config.num_hidden_layers
    inner = std / math.sqrt(m)
    logits = f"last norm 1 / {m:g}" if config.tie_word_embeddings else f"head {std:g} / {m:g}"
    return (
        f"µP at {m:g} × the width {base_width} (Yang et al. 2022, arXiv:2203.03466, table 8): embedding {std:g}, "
        f"matrices {std:g} / √{m:g} = {inner:.2g}, o_proj and down_proj / √(2·{L}) besides, {logits}"
    )


def _times(config: ModelConfig, base_width: int) -> float:
    if base_width < 1:
        raise ModelConfigError(f"base_width = {base_width}: must be greater than zero")
    return config.hidden_size / base_width


def _is_matrix(name: str, weight: torch.Tensor) -> bool:
    return name.startswith("layers.") and weight.dim() == 2


def _makes_logits(name: str, config: ModelConfig) -> bool:
    """The head's weight or, where it is tied, the last norm's, which then is the logits' multiplier."""
    return name.startswith("norm.") if config.tie_word_embeddings else name == "lm_head.weight"
