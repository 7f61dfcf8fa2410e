"""Inside a model while it reads a text: who looks at whom, and what each layer would say already.

**Attention maps.** Layer l, head h, query t: the weights softmax(q kᵀ/√D) over the keys it sees, which add up to 1.
The fused kernels never hold them, so they are made here once more, from each layer's own queries and keys.

**Logit lens** (nostalgebraist 2020, "interpreting GPT: the logit lens"). Every layer adds to one stream, and the head
reads its end. Read it earlier: norm and head on the stream after each layer give what the model would say if it
stopped there. Row 0 is the embedding alone, the last row is what the model says.

Legend: L layers, H query heads, K key heads, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from luthier.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from luthier.models.transformer import Attention, Transformer

__all__ = ["MOST_WEIGHTS", "Look", "look"]

MOST_WEIGHTS = 48_000_000  # attention weights in a page


@dataclass
class Look:
    """What was seen; token t is `ids[t]`, and `ids[t + 1]` is what should have followed."""

    ids: list[int]
    bits_T: Tensor
    """−log₂ p of the token that followed each place."""
    rank_T: Tensor
    """Its place among all tokens, 1 the likeliest."""
    best_TN: Tensor
    """The N likeliest tokens at each place."""
    chance_TN: Tensor
    """Their probabilities."""
    said_LT: Tensor
    """The likeliest token after each layer, L + 1 rows."""
    sure_LT: Tensor
    """Its probability."""
    right_LT: Tensor
    """The probability of the token that followed."""
    maps_LHTT: Tensor
    """Attention weights, float32."""


def look(model: Transformer, ids: Sequence[int], *, named: int | None = None, best: int = 5, maps: bool = True) -> Look:
    """Read `ids` (two at least) and look on; only the first `named` ids can be said (default: all). Without `maps` the
    attention weights, the largest part, are left out.

    Raises InputError if there would be more of them than a page can hold.
    """
    import torch

    L, H, T = model.config.num_hidden_layers, model.config.num_attention_heads, len(ids) - 1
    if maps and L * H * T * T > MOST_WEIGHTS:
        raise InputError(
            f"{L} layers of {H} heads over {T:,} tokens have {L * H * T * T:,} attention weights, a page holds "
            f"{MOST_WEIGHTS:,}: give a text of at most {int((MOST_WEIGHTS / L / H) ** 0.5):,} tokens"
        )

    streams, weights, handles = [], [], []
    for layer in model.layers:
        attention = cast("Attention", layer.self_attn)
        handles += [layer.register_forward_hook(lambda _m, _a, out: streams.append(out[0] + out[1]))]
        if maps:
            handles += [attention.register_forward_pre_hook(lambda m, args: weights.append(_weights(m, *args[:2])))]
    handles += [model.layers[0].register_forward_pre_hook(lambda _m, args: streams.append(args[0]))]
    read_T = torch.tensor(ids[:-1], device=model.embed_tokens.weight.device)
    follows_T1 = torch.tensor(ids[1:], device=read_T.device)[:, None]
    try:
        with torch.inference_mode():
            model.hidden(read_T[None])
            tables = [_chances(model, stream[0]) for stream in streams]
    finally:
        for handle in handles:
            handle.remove()
    last_TV = tables[-1]
    p_T1 = last_TV.gather(1, follows_T1)
    said = [table[:, :named].max(-1) for table in tables]
    top = last_TV[:, :named].topk(min(best, last_TV[:, :named].shape[1]))
    return Look(
        ids=list(ids),
        bits_T=-p_T1[:, 0].log2(),
        rank_T=1 + (last_TV > p_T1).sum(-1),
        best_TN=top.indices,
        chance_TN=top.values,
        said_LT=torch.stack([s.indices for s in said]),
        sure_LT=torch.stack([s.values for s in said]),
        right_LT=torch.stack([table.gather(1, follows_T1)[:, 0] for table in tables]),
        maps_LHTT=torch.stack(weights) if maps else torch.zeros(L, H, 0, 0),
    )


def _chances(model: Transformer, stream_TC: Tensor) -> Tensor:
    """The probabilities [T, V] that norm and head make of the residual stream."""
    return (model.norm(stream_TC) @ model.head_weight.T).double().softmax(-1)


def _weights(attention: Any, x_BTC: Tensor, places: Any) -> Tensor:
    """Attention weights [H, T, T] of the only row."""
    import torch

    q_THD, k_TKD, _ = (x[0].float() for x in attention.heads(x_BTC, places))
    T, H, D = q_THD.shape
    k_THD = k_TKD.repeat_interleave(H // k_TKD.shape[1], dim=1)
    scores_HTT = torch.einsum("thd,shd->hts", q_THD, k_THD) * D**-0.5
    unseen = ~torch.ones(T, T, dtype=torch.bool, device=q_THD.device).tril(0)
    if places.mask_BTS is not None:
        unseen = ~places.mask_BTS[0]
    if places.window is not None:
        unseen = unseen | torch.ones_like(unseen).tril(-places.window)
    return scores_HTT.masked_fill(unseen, -torch.inf).softmax(-1)
