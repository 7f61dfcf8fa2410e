"""The last layer and the loss in one: cross entropy of x·Wᵀ without ever holding all logits.

    z = x Wᵀ                    [N, V], the logits
    loss = Σ_n (log Σ_v exp z_nv − z_n,label)                            −log p of each label, in nats, summed
    dz = softmax(z) − onehot(label),    dx = dz W,    dW = dzᵀ x

At V = 32,000 the logits of 4,096 tokens take 0.5 GB, dz as much again. But a block of rows is all that the formulas
need at a time: make its logits, take the loss, turn them in place into dz, add dz's share to dx and dW, throw it away.
So loss *and* gradients come from one pass and nothing is computed twice (the idea: Wijmans et al. 2024,
arXiv:2411.09009; recomputing the logits in the backward pass instead costs 15% of a training step on a CPU). The
gradients are made for an incoming gradient of 1, and scaled when the real one arrives.

Rows without a label (−100, as everywhere in the field) are left out before the first product: in chat tuning, where
only the assistant's words are learned, most of the work of this layer falls away.

Legend: N rows (tokens), C hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORE", "linear_cross_entropy", "linear_cross_entropy_reference"]

IGNORE = -100
BLOCK_NUMBERS = 2**21  # logits in a block: 8 MB of float32, 512 rows at V = 4096; flat from 256 to 4096 rows there


def linear_cross_entropy_reference(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The sum of −log p over the labels that are not −100. x: [N, C], weight: [V, C], labels: [N]."""
    return F.cross_entropy(x @ weight.T, labels, ignore_index=IGNORE, reduction="sum")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """x [N, C], weight [V, C] and labels [N], every one of them a class."""
        rows = max(1, BLOCK_NUMBERS // weight.shape[0])
        need_x, need_weight = ctx.needs_input_grad[:2]
        dx = torch.empty_like(x) if need_x else None
        dW = torch.zeros_like(weight) if need_weight else None
        loss = x.new_zeros((), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        for start in range(0, x.shape[0], rows):
            block = slice(start, start + rows)
            x_b, labels_b = x[block], labels[block, None]
            z = _wide(x_b @ weight.T)
            of_label = z.gather(1, labels_b)
            top = z.amax(1, keepdim=True)
            total = z.sub_(top).exp_().sum(1, keepdim=True)
            loss += (total.log() + top - of_label).sum()
            if dx is None and dW is None:
                continue
            dz = z.div_(total).scatter_add_(1, labels_b, z.new_full((), -1).expand_as(labels_b)).to(x.dtype)
            if dx is not None:
                torch.mm(dz, weight, out=dx[block])
            if dW is not None:
                dW.addmm_(dz.T, x_b)
        ctx.save_for_backward(dx, dW)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (scale,) = gradients
        dx, dW = ctx.saved_tensors
        return None if dx is None else dx * scale.to(dx.dtype), None if dW is None else dW * scale.to(dW.dtype), None


def _wide(z: Tensor) -> Tensor:
    """Logits in float32 at least: a softmax in half precision loses the tail."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def linear_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of −log p in nats over the labelled rows (float32, float64 for float64), and the number of labels (int64).

    x: [..., C], weight: [V, C], labels: [...] int64, −100 where there is none. With no label at all the loss is zero
    and so are the gradients. Raises ValueError for shapes that do not fit and labels outside the vocabulary.
    """
    V, C = weight.shape
    if x.shape[-1] != C or labels.shape != x.shape[:-1]:
        raise ValueError(
            f"linear_cross_entropy: weight has shape {(V, C)}, so x must be [..., {C}] and labels [...]; "
            f"found x {tuple(x.shape)}, labels {tuple(labels.shape)}"
        )
    x, labels = x.reshape(-1, C), labels.reshape(-1)
    labelled = (labels != IGNORE).nonzero()[:, 0]
    if len(labelled) < len(labels):
        x, labels = x[labelled], labels[labelled]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < V:
        wrong = labels[(labels < 0) | (labels >= V)][0]
        raise ValueError(f"linear_cross_entropy: label {int(wrong)} is outside the vocabulary of {V}; −100 means none")
    loss: Any = _LinearCrossEntropy.apply(x, weight, labels)
    return loss, torch.tensor(len(labels), device=x.device)
