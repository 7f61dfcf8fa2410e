"""Cross entropy: how surprised a model is by the token that came.

    ℓ = log Σ_v exp z_v                                      the log-sum-exp of a row of logits z
    loss = ℓ − z_y                                           −log p of the label y, in nats
         → (1 − α)·(ℓ − z_y) + α·(ℓ − mean_v z_v)            label smoothing (Szegedy et al. 2016, arXiv:1512.00567, §7)
         + ζ·ℓ²                                              z-loss: keeps ℓ near 0 (PaLM, arXiv:2204.02311, §5)
    dz_v = (1 + 2ζℓ)·p_v − (1 − α)·[v = y] − α / V

each row times its weight. With p = exp(z − ℓ) the backward pass needs the logits and one number a row.

**On a card** a program reads one row in blocks, keeping the largest logit so far and the sum of exponentials scaled to
it, so a row of any length is read once forward, and read and written once backward. The gradient may be written over
the logits: linear_cross_entropy.py does so.

Preference tuning (DPO, arXiv:2305.18290) needs log p of each token: `log_probs` is the loss of each row with its sign
turned.

Labels that lie in a card's memory are not looked at from outside, for which the processor would have to wait until the
card has made them: a label outside the vocabulary makes its row's loss and gradient NaN there, and is named elsewhere.

Legend: N rows (tokens), V vocabulary; a label of −100 means none: no loss, no gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.launch import (
    Impl,
    check_floats,
    check_together,
    constant,
    jit,
    launch,
    narrow,
    power,
    tl,
    use_triton,
)

__all__ = ["IGNORE", "Reduction", "cost", "cross_entropy", "cross_entropy_reference", "log_probs", "reduce"]

IGNORE = -100
NONE = constant(IGNORE)
EXAMPLE = {"rows": 8192, "vocabulary": 128256}
Reduction = Literal["sum", "mean", "none"]


def cross_entropy_reference(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """The loss of each row [N], one operation at a time. logits: [N, V], labels: [N]."""
    labelled = labels != IGNORE
    top = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    lse = logits.logsumexp(1)
    loss = lse - (1 - label_smoothing) * top - label_smoothing * logits.mean(1) + z_loss * lse**2
    return torch.where(labelled, loss, torch.zeros_like(loss))


def cost(rows: int, vocabulary: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward."""
    numbers = rows * vocabulary
    return {"forward": (numbers * itemsize, 4 * numbers), "backward": (2 * numbers * itemsize, 4 * numbers)}


# ---------------------------------------------------------------- Triton


@jit
def _forward(Z, Labels, Loss, Lse, V, stride, smoothing, z_loss, BLOCK: tl.constexpr, SMOOTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(Labels + row)
    Z += row * stride
    i = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total, plain = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):  # each of BLOCK columns has its own online sum: no reduction inside the loop
        inside = start + i < V
        z = tl.load(Z + start + i, inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, z)
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.exp(z - safe)
        top = higher
        if SMOOTH:
            plain += tl.where(inside, z, 0.0)
    highest = tl.max(top, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    known = (label >= 0) & (label < V)
    of_label = tl.load(Z + label, known, other=float("nan")).to(tl.float32)
    loss = lse - (1 - smoothing) * of_label + z_loss * lse * lse
    if SMOOTH:
        loss -= smoothing * tl.sum(plain, 0) / V
    tl.store(Lse + row, lse)
    tl.store(Loss + row, tl.where(label == NONE, 0.0, loss))


@jit
def _backward(Z, Dz, Labels, Lse, Factor, V, stride, dz_stride, smoothing, z_loss, BLOCK: tl.constexpr):
    row, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK
    label, lse = tl.load(Labels + row), tl.load(Lse + row)
    factor = tl.where((label >= 0) & (label < V), tl.load(Factor + row), float("nan"))
    factor = tl.where(label == NONE, 0.0, factor)
    i = start + tl.arange(0, BLOCK)
    p = tl.exp(tl.load(Z + row * stride + i, i < V, other=-float("inf")).to(tl.float32) - lse)
    dz = p * (1 + 2 * z_loss * lse) - smoothing / V - tl.where(i == label, 1 - smoothing, 0.0)
    tl.store(Dz + row * dz_stride + i, narrow(factor * dz, Dz.dtype.element_ty), i < V)


def row_losses(z: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of each row of z [N, V], float32 [N], by the kernel."""
    loss, lse = (torch.empty(len(z), dtype=torch.float32, device=z.device) for _ in range(2))
    BLOCK = min(power(z.shape[1]), 4096)
    numbers = (z.shape[1], z.stride(0), smoothing, z_loss)
    warps = max(1, min(8, BLOCK // 256))
    launch(_forward, (len(z),), z, labels, loss, lse, *numbers, BLOCK=BLOCK, SMOOTH=smoothing > 0, num_warps=warps)
    return loss, lse


def row_slopes(
    z: Tensor, dz: Tensor, labels: Tensor, lse: Tensor, factor: Tensor, smoothing: float, z_loss: float
) -> Tensor:
    """The gradient of Σ factor·loss in dz [N, V], which may be z itself, by the kernel. factor: float32 [N]."""
    BLOCK = min(power(z.shape[1]), 4096)
    grid = (len(z), -(-z.shape[1] // BLOCK))
    numbers = (z.shape[1], z.stride(0), dz.stride(0), smoothing, z_loss)
    launch(_backward, grid, z, dz, labels, lse, factor, *numbers, BLOCK=BLOCK, num_warps=max(1, min(8, BLOCK // 256)))
    return dz


class _TritonCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
        z = z if z.stride(1) == 1 else z.contiguous()
        loss, lse = row_losses(z, labels, smoothing, z_loss)
        ctx.save_for_backward(z, labels, lse)
        ctx.options = (smoothing, z_loss)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        z, labels, lse = ctx.saved_tensors
        dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        return row_slopes(z, dz, labels, lse, gradients[0].float().contiguous(), *ctx.options), None, None, None


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    z = torch.zeros(tokens, EXAMPLE["vocabulary"], dtype=dtype, requires_grad=True)
    labels = torch.zeros(tokens, dtype=torch.int64)
    for smoothing in (0.0, 0.1):
        loss: Any = _TritonCrossEntropy.apply(z, labels, smoothing, 0.0)
        loss.backward(loss)


# ---------------------------------------------------------------- public


def reduce(loss: Tensor, labels: Tensor, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Rows' losses times their weights: as they are, added, or their mean (over Σ weights of labelled rows)."""
    loss = loss if weights is None else loss * weights
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    labelled = labels != IGNORE
    return loss.sum() / (labelled.sum() if weights is None else (weights * labelled).sum())


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: Reduction = "sum",
    impl: Impl = "auto",
) -> Tensor:
    """Cross entropy in nats of logits [..., V] for labels [...] (int64, −100 for none), float32 or wider.

    `weights` [...] counts each token; "mean" divides by the sum of the weights of labelled tokens (not a number if
    there are none). Raises ValueError for shapes that do not fit and labels outside the vocabulary (on a card: NaN).
    """
    check_together("cross_entropy", logits=logits, weights=weights)
    if logits.dim() == 0:
        raise ValueError("cross_entropy: logits must be [..., V]; found a single number")
    V, triton = logits.shape[-1], use_triton("cross_entropy", impl, logits)
    check_labels("cross_entropy", logits.shape, labels, V, weights, label_smoothing, reduction, logits.device, triton)
    z, flat = logits.reshape(-1, V), labels.reshape(-1)
    if triton:
        check_floats("cross_entropy", logits=logits)
        loss: Any = _TritonCrossEntropy.apply(z, flat, label_smoothing, z_loss)
    else:
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        loss = F.cross_entropy(z, flat, ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing)
        if z_loss:
            loss = loss + torch.where(flat != IGNORE, z_loss * z.logsumexp(1) ** 2, 0.0)
    return reduce(loss.view(labels.shape), labels, weights, reduction)


def log_probs(logits: Tensor, labels: Tensor, *, impl: Impl = "auto") -> Tensor:
    """log p of each label under logits [..., V], float32 [...]; 0 where there is no label (−100)."""
    return -cross_entropy(logits, labels, reduction="none", impl=impl)


def check_labels(
    name: str,
    shape: torch.Size,
    labels: Tensor,
    V: int,
    weights: Tensor | None,
    label_smoothing: float,
    reduction: str,
    device: torch.device,
    triton: bool,
) -> None:
    """Raises ValueError, naming the argument, for what does not fit tokens [...] of `shape` [..., any] on `device`.
    What labels on a card say is not looked at where Triton takes them."""
    if labels.shape != shape[:-1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{name}: labels must be int64 {tuple(shape[:-1])}; found {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.device != device:
        raise ValueError(f"{name}: labels are on {labels.device}, the numbers on {device}; move one to the other")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"{name}: weights must be {tuple(labels.shape)}; found {tuple(weights.shape)}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing is {label_smoothing}; it must be 0 or more and less than 1")
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"{name}: reduction is {reduction!r}; it may be 'sum', 'mean' or 'none'")
    if triton and labels.is_cuda:
        return
    wrong = labels[((labels < 0) | (labels >= V)) & (labels != IGNORE)]
    if len(wrong):
        raise ValueError(f"{name}: label {int(wrong[0])} is outside the vocabulary of {V}; −100 means none")
