"""How wrong a kernel may be.

No kernel gives the exact result: it adds in another order than the formula does and rounds on the way. How much is
right depends on the numbers, so the budget is set by what the plain formula itself loses:

    |ours − truth| ≤ 2 · |the plain formula in the same dtype − truth| + 1e-5

for every output and every gradient; the truth is the plain formula in float64. The tests and `luthier bench kernels`
use the same lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["FLOOR", "fixed", "results", "violations"]

FLOOR = 1e-5


def fixed(like: Tensor, seed: int) -> Tensor:
    """Normal numbers of a tensor's shape that every dtype holds exactly (those of bfloat16)."""
    numbers = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.bfloat16().to(like)


def results(f: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype, seed: int = 9) -> list[Tensor]:
    """The outputs of f for inputs in a dtype, and the gradient of their product with fixed numbers for every input that
    f's result depends on."""
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    found = f(*inputs)
    outs = list(found) if isinstance(found, tuple | list) else [found]
    learned = [(out, fixed(out, seed + i)) for i, out in enumerate(outs) if out.requires_grad]
    if learned:
        torch.autograd.backward([out for out, _ in learned], [slope for _, slope in learned])
    return [*(out.detach() for out in outs), *(x.grad for x in inputs if x.grad is not None)]


def violations(
    ours: Callable[..., Any], plain: Callable[..., Any], inputs: Sequence[Tensor], floor: float = FLOOR
) -> list[str]:
    """What of ours is outside the budget, a line each; empty if all is within."""
    dtype = inputs[0].dtype
    truth = results(plain, inputs, torch.float64)
    found, reference = results(ours, inputs, dtype), results(plain, inputs, dtype)
    if len(found) != len(truth):
        return [f"{len(found)} outputs and gradients, expected {len(truth)}"]
    wrong = []
    for i, (t, o, r) in enumerate(zip(truth, found, reference, strict=True)):
        if o.shape != t.shape or o.dtype != r.dtype:
            wrong.append(f"number {i} is {o.dtype} {tuple(o.shape)}, expected {r.dtype} {tuple(t.shape)}")
        elif t.numel():
            budget, worst = 2 * float((r - t).abs().max()) + floor, float((o - t).abs().max())
            if not worst <= budget:  # also where it is not a number
                wrong.append(f"number {i} of {len(truth)} results is off by {worst:.3g}, may be {budget:.3g}")
    return wrong
