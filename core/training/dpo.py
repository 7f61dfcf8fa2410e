"""Preference tuning without a reward model: DPO (Rafailov et al. 2023, arXiv:2305.18290).

A pair is a prompt x with a better answer y₊ and a worse one y₋. The reward that the model itself stands for is how much
likelier it has made an answer than the model it started from, the reference (eq. 5, up to a term that x alone decides):

    r(y) = β · (log p(y | x) − log p_ref(y | x))                 log p(y | x) = Σ_t log p(y_t | x, y_<t)

That y₊ is preferred has the probability σ(r(y₊) − r(y₋)) (Bradley & Terry 1952), so the loss of a pair is (eq. 7)

    −log σ(margin),       margin = r(y₊) − r(y₋)

It is log 2 at the start, where the model is the reference. β says how dear it is to leave the reference.

**Layout.** Both answers of a pair stand one after the other in a row, as documents 2k and 2k+1, prompt included; they
do not see each other. A row holds whole pairs, so that any cut into micro-batches keeps them together. The loss of a
step is a sum over pairs divided by the number of pairs in the whole batch.

**The reference** is asked once, before the first step: its log p of every label is kept beside the label. No second
model is needed while training.

Legend: B rows, T tokens a row, P pairs of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.data.preferences import Preference
from luthier.core.training.batches import IGNORED, Batch, Example, padding
from luthier.core.training.examples import encode_wording
from luthier.kernels.linear_cross_entropy import linear_log_probs
from luthier.models.transformer import Transformer

if TYPE_CHECKING:
    from luthier.core.training.loop import LossOf
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["dpo_loss", "encode_preference", "log_ratios", "pairs_in", "with_reference"]

ROWS = 16  # pairs that the reference reads at once


def encode_preference(tokenizer: Tokenizer, preference: Preference) -> Example:
    """Both conversations of a pair, one after the other."""
    both = [encode_wording(tokenizer, preference.conversation(chosen), preference.where) for chosen in (True, False)]
    ids, labels = (np.concatenate([getattr(e, name) for e in both]) for name in ("ids", "labels"))
    return Example(ids, labels, np.repeat([0, 1], [len(e) for e in both]), preference.where)


def log_probs(model: Transformer, batch: Batch) -> Tensor:
    """log p of every label [B, T]; 0 where there is none."""
    hidden_BTC = model.hidden(batch.ids_BT, document_BT=batch.document_BT)
    return linear_log_probs(hidden_BTC, model.head_weight, batch.labels_BT)


def pairs_in(batch: Batch) -> int:
    """Number of pairs."""
    return int(_pairs_of_rows(batch).sum())


def _pairs_of_rows(batch: Batch) -> Tensor:
    return torch.div(batch.document_BT.amax(1) + 1, 2, rounding_mode="floor")


def log_ratios(log_BT: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums of `log_BT` over the better and over the worse answer of every pair of a batch, [pairs] each."""
    pairs_B = _pairs_of_rows(batch)
    most = int(pairs_B.max())
    place_BT = batch.document_BT.clamp(min=0)  # padding has no label, so it adds nothing to document 0
    sums = log_BT.new_zeros(len(log_BT), max(2 * most, 1)).scatter_add(1, place_BT, log_BT)[:, : 2 * most]
    there = torch.arange(most, device=log_BT.device) < pairs_B[:, None]
    return sums[:, 0::2][there], sums[:, 1::2][there]


def dpo_loss(beta: float) -> LossOf:
    """The sum of −log σ(margin) over the pairs of a batch, with the sums of margins and of margins above 0."""

    def loss_of(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.reference_BT is not None
        chosen, rejected = log_ratios(log_probs(model, batch) - batch.reference_BT, batch)
        margin = beta * (chosen - rejected)
        figures = {"reward_margin": margin.detach().sum(), "reward_accuracy": (margin.detach() > 0).sum()}
        return -F.logsigmoid(margin).sum(), figures

    return loss_of


@torch.no_grad()
def with_reference(model: Transformer, examples: Sequence[Example]) -> list[Example]:
    """The examples with the log-probabilities that `model` gives their labels now."""
    model.eval()
    found, device = list(examples), model.embed_tokens.weight.device
    order = sorted(range(len(found)), key=lambda i: len(found[i]))
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        log_BT = log_probs(model, _one_a_row([found[i] for i in places]).to(device)).float().numpy(force=True)
        for i, row in zip(places, log_BT, strict=True):
            found[i] = replace(found[i], reference=row[: len(found[i])].copy())
    return found


def _one_a_row(examples: Sequence[Example]) -> Batch:
    """Each example in a row of its own, padded to the longest."""
    width = max(len(e) for e in examples)

    def padded(name: str, filling: int) -> Tensor:
        rows = [np.pad(getattr(e, name), (0, width - len(e)), constant_values=filling) for e in examples]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    documents = [np.concatenate([e.document, padding(width - len(e))]) for e in examples]
    return Batch(padded("ids", 0), padded("labels", IGNORED), torch.from_numpy(np.stack(documents)))
