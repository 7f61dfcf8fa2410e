"""The last layer and the loss in one: cross entropy of x·Wᵀ without ever holding all logits.

    z = x Wᵀ                    [N, V], the logits
    loss = Σ_n (log Σ_v exp z_nv − z_n,label)                            −log p of each label, in nats, summed
    dz = softmax(z) − onehot(label),    dx = dz W,    dW = dzᵀ x

At V = 32,000 the logits of 4,096 tokens take 0.5 GB, dz as much again. But a block of rows is all that the formulas
need at a time: make its logits, take the loss, turn them in place into dz, add dz's share to dx and dW, throw it away.
So loss *and* gradients come from one pass and nothing is computed twice (the idea: Wijmans et al. 2024,
arXiv:2411.09009; recomputing the logits in the backward pass instead costs 15% of a training step on a CPU). The
gradients are made for an incoming gradient of 1, and scaled when the real one arrives.

Losses of single rows (reduction "none", and `linear_log_probs` for preference tuning) get their gradient later and
different for each row; dW then needs the logits again, and the backward pass makes them block by block.

On a card the products are cuBLAS's, and the step from logits to loss and dz is cross_entropy.py's kernels, in place.
What is held beside the gradients is one block of logits: whole tiles of 128 rows, 1/21 of them all at most. The larger
the block, the less often weight and dW are read from memory. dW is added up block by block in its own dtype, each
product and sum rounded once.

On a CPU a block has some 512 rows: each one reads and writes all of dW, and with 64 rows of 32,000 logits that costs a
quarter more time (1024 rows, C = 384, one core of an AMD EPYC: 1,092 ms with 64 rows, 853 with 512, 865 unblocked).
PyTorch's softmax walks a row while it lies in the cache: 10 ms for 512 × 32,000 in place, against 26 ms for maximum,
difference, exponential, sum and quotient one after the other.

Label smoothing, z-loss and weights are those of cross_entropy.py.

Rows without a label (−100, as everywhere in the field) are left out before the first product: in chat tuning, where
only the assistant's words are learned, most of the work of this layer falls away.

Legend: N rows (tokens), C hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.kernels.cross_entropy import (
    IGNORE,
    Reduction,
    check_labels,
    cross_entropy_reference,
    reduce,
    row_losses,
    row_slopes,
)
from luthier.kernels.launch import Impl, LaunchError, check_floats, check_together, use_triton
from luthier.kernels.product import product

__all__ = ["IGNORE", "cost", "linear_cross_entropy", "linear_cross_entropy_reference", "linear_log_probs"]

BLOCK_NUMBERS = 2**21  # logits in a block on a CPU: 8 MB of float32, 512 rows at V = 4096 …
BLOCK_ROWS, MOST_NUMBERS = 512, 2**25  # … and 512 rows at V = 32,000, too, but not above 128 MB
SMALL = 1e-30  # a probability below which float32 has lost digits of it, or all
EXAMPLE = {"rows": 8192, "columns": 4096, "vocabulary": 128256}


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """The sum of the losses over the labels that are not −100. x: [N, C], weight: [V, C], labels: [N]."""
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    return cross_entropy_reference(x @ weight.T, labels, **options).sum()


def cost(rows: int, columns: int, vocabulary: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward (all of it is done forward).

    Logits are written once and read twice, dz written once and read twice.
    """
    product = 2 * rows * columns * vocabulary
    numbers = rows * columns + vocabulary * columns
    return {"forward and backward": ((3 * numbers + 6 * rows * vocabulary) * itemsize, 3 * product)}


# ---------------------------------------------------------------- a block of rows


def _slopes(
    x: Tensor, weight: Tensor, labels: Tensor, factor: Tensor | None, options: Any, need: bool
) -> tuple[Tensor, Tensor | None]:
    """PyTorch: the losses of a block of rows, and dz (times factor [n]) in the logits' memory if it is needed."""
    smoothing, z_loss = options
    z, labels = _wide(product(x, weight.T)), labels[:, None]
    if not (smoothing or z_loss):
        torch.softmax(z, 1, out=z)
        p = z.gather(1, labels)
        if not bool((p < SMALL).any()):
            if need:
                z.scatter_add_(1, labels, z.new_full((), -1.0).expand_as(labels))
            return -p.log()[:, 0], (z if factor is None else z.mul_(factor[:, None])) if need else None
        z = _wide(product(x, weight.T))  # a label of a probability without logarithm: the logits once more
    of_label = z.gather(1, labels)
    mean = z.mean(1, keepdim=True) if smoothing else 0.0
    top = z.amax(1, keepdim=True)
    total = z.sub_(top).exp_().sum(1, keepdim=True)
    lse = total.log() + top
    loss = (lse - (1 - smoothing) * of_label - smoothing * mean + z_loss * lse**2)[:, 0]
    if not need:
        return loss, None
    z.div_(total if not z_loss else total / (1 + 2 * z_loss * lse))
    z.scatter_add_(1, labels, z.new_full((), smoothing - 1).expand_as(labels))
    if smoothing:
        z.sub_(smoothing / z.shape[1])
    return loss, z if factor is None else z.mul_(factor[:, None])


def _slopes_on_card(
    x: Tensor, weight: Tensor, labels: Tensor, factor: Tensor | None, options: Any, need: bool
) -> tuple[Tensor, Tensor | None]:
    """The same by Triton."""
    z = x @ weight.T
    loss, lse = row_losses(z, labels, *options)
    if not need:
        return loss, None
    factor = torch.ones_like(loss) if factor is None else factor.float().contiguous()
    return loss, row_slopes(z, z, labels, lse, factor, *options)


def _blocks(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    factor: Tensor | None,
    need: tuple[bool, bool],
    triton: bool,
    options: Any,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss of each row, and the gradients of Σ factor·loss for x and weight where they are needed."""
    N, V = len(x), len(weight)
    rows = max(128, N // 21 // 128 * 128) if triton else max(1, BLOCK_NUMBERS // V, min(BLOCK_ROWS, MOST_NUMBERS // V))
    dx = torch.empty_like(x) if need[0] else None
    dW = None
    loss = x.new_empty(N, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    for start in range(0, N, rows):
        block = slice(start, start + rows)
        given = None if factor is None else factor[block]
        step = _slopes_on_card if triton else _slopes
        loss[block], dz = step(x[block], weight, labels[block], given, options, any(need))
        if dz is None:
            continue
        dz = dz.to(x.dtype)
        if dx is not None:
            dx[block] = product(dz, weight)
        if need[1]:
            if dW is None:  # into room of its dtype, which autocast leaves alone
                dW = product(dz.T, x[block], out=torch.empty_like(weight))
            else:
                product(dz.T, x[block], out=dW, add=True)
        del dz  # before the next block's logits are made
    return loss, dx, torch.zeros_like(weight) if need[1] and dW is None else dW


def _wide(z: Tensor) -> Tensor:
    """Logits in float32 at least: a softmax in half precision loses the tail."""
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


class _Sum(torch.autograd.Function):
    """Σ weights·loss. x [N, C], weight [V, C] and labels [N], every one of them a class."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, weights: Tensor | None, triton: bool, options: Any
    ) -> Tensor:
        loss, *ctx.slopes = _blocks(x, weight, labels, weights, ctx.needs_input_grad[:2], triton, options)
        ctx.save_for_backward(x, weight, labels, weights)
        ctx.how = (triton, options)
        return (loss if weights is None else loss * weights).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        slopes, ctx.slopes = ctx.slopes, None  # given away, not copied: dW may be as large as the model
        if slopes is None:  # a second pass back through the same graph
            x, weight, labels, weights = ctx.saved_tensors
            slopes = _blocks(x, weight, labels, weights, ctx.needs_input_grad[:2], *ctx.how)[1:]
        dx, dW = (None if d is None else d.mul_(scale.to(d.dtype)) for d in slopes)
        return dx, dW, None, None, None, None


class _EachRow(torch.autograd.Function):
    """The loss of each row [N]; the logits are made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, triton: bool, options: Any) -> Tensor:
        ctx.save_for_backward(x, weight, labels)
        ctx.how = (triton, options)
        return _blocks(x, weight, labels, None, (False, False), triton, options)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (x, weight, labels), (triton, options) = ctx.saved_tensors, ctx.how
        _, dx, dW = _blocks(x, weight, labels, gradients[0], ctx.needs_input_grad[:2], triton, options)
        return dx, dW, None, None, None


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    x = torch.zeros(tokens, 16, dtype=dtype, requires_grad=True)
    weight = torch.zeros(EXAMPLE["vocabulary"] // 64 // 16 * 16, 16, dtype=dtype, requires_grad=True)
    loss: Any = _Sum.apply(x, weight, torch.zeros(tokens, dtype=torch.int64), None, True, (0.1, 1e-4))
    loss.backward()


# ---------------------------------------------------------------- public


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "sum",
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats over the labelled rows (float32, float64 for float64), and the number of labels (int64).

    x: [..., C], weight: [V, C], labels: [...] int64, −100 where there is none; `weights` [...] counts each token. The
    loss is added ("sum", zero with no label at all, and so are the gradients), their mean over the sum of the weights
    of labelled tokens ("mean"), or each token's [...] ("none", 0 without a label). Raises ValueError for shapes that do
    not fit and labels outside the vocabulary (on a card: NaN).
    """
    check_together("linear_cross_entropy", x=x, weight=weight, weights=weights)
    if weight.dim() != 2 or x.dim() == 0:
        raise ValueError(
            f"linear_cross_entropy: weight must be [V, C] and x [..., C]; found {tuple(weight.shape)}, {tuple(x.shape)}"
        )
    V, C = weight.shape
    if x.shape[-1] != C or labels.shape != x.shape[:-1]:
        raise ValueError(
            f"linear_cross_entropy: weight has shape {(V, C)}, so x must be [..., {C}] and labels [...]; "
            f"found x {tuple(x.shape)}, labels {tuple(labels.shape)}"
        )
    triton = use_triton("linear_cross_entropy", impl, x)
    check_labels("linear_cross_entropy", x.shape, labels, V, weights, label_smoothing, reduction, x.device, triton)
    if triton:
        check_floats("linear_cross_entropy", x=x, weight=weight)
        if x.dtype != weight.dtype:
            raise LaunchError(f"linear_cross_entropy: x is {x.dtype}, weight is {weight.dtype}; they must be equal")
    x, flat, options = x.reshape(-1, C), labels.reshape(-1), (label_smoothing, z_loss)
    labelled = (flat != IGNORE).nonzero()[:, 0]
    some = len(labelled) < len(flat)
    x_l, labels_l = (x[labelled], flat[labelled]) if some else (x, flat)
    count = torch.tensor(len(labelled), device=x.device)
    if reduction == "none":
        loss: Any = _EachRow.apply(x_l, weight, labels_l, triton, options)
        loss = loss.new_zeros(len(flat)).index_put((labelled,), loss) if some else loss
        return reduce(loss.view(labels.shape), labels, weights, "none"), count
    w = None if weights is None else weights.detach().reshape(-1)[labelled] if some else weights.detach().reshape(-1)
    loss = _Sum.apply(x_l, weight, labels_l, w, triton, options)
    if reduction == "mean":
        loss = loss / (count if w is None else w.sum())
    return loss, count


def linear_log_probs(x: Tensor, weight: Tensor, labels: Tensor, *, impl: Impl = "auto") -> Tensor:
    """log p of each label [...] under the logits x·Wᵀ, which are never held whole; 0 where there is no label."""
    return -linear_cross_entropy(x, weight, labels, reduction="none", impl=impl)[0]
