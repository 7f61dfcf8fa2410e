"""Optimizers: how a gradient becomes a step.

**AdamW** (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) keeps two running means for each weight and decays
the weight apart from the gradient ("decoupled"):

    m = β₁ m + (1 − β₁) g          v = β₂ v + (1 − β₂) g²
    θ = θ (1 − lr·λ) − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

**Muon** (Jordan et al. 2024, kellerjordan.github.io/posts/muon) is for hidden matrices. It follows the momentum, but
makes all its singular values about 1, so that rare directions move as far as common ones:

    b = μ b + (1 − μ) g            u = (1 − μ) g + μ b            (Nesterov)
    u = U S Vᵀ  →  about U Vᵀ      by five Newton–Schulz steps:  A = XXᵀ,  X ← aX + (bA + cA²)X

    θ = θ (1 − lr·λ) − lr · 0.2·√max(rows, columns) · U Vᵀ

The factor 0.2·√max (Liu et al. 2025, arXiv:2502.16982, §2.2) gives the update the size that AdamW's has, so one
learning rate serves both. Matrices of equal shape go through the iteration together, as one batched product.

Which weight gets which: matrices inside the layers Muon (or AdamW with decay), embedding and head AdamW without
decay, norms' scales AdamW without decay. Decay pulls unused rows of an embedding to zero and a norm's scale away from
1; neither is wanted. A step is arithmetic on lists of tensors (`torch._foreach_…`), which costs a few calls rather
than one a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["AdamW", "Muon", "make_optimizers", "newton_schulz"]

# Jordan's coefficients: steepest at zero, so small singular values grow fastest; the end lies between 0.7 and 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)

each: Any = torch  # the `_foreach_` operations are public in torch's documentation, but not to type checkers


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay; groups may override lr and weight_decay."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(group, weights, [p.grad for p in weights if p.grad is not None])

    def _step(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
        states = [self._state(p) for p in weights]
        for state in states:
            state["step"] += 1
        t, (beta1, beta2), lr = int(states[0]["step"]), group["betas"], group["lr"]
        m, v = [s["m"] for s in states], [s["v"] for s in states]
        each._foreach_lerp_(m, grads, 1 - beta1)
        each._foreach_mul_(v, beta2)
        each._foreach_addcmul_(v, grads, grads, 1 - beta2)
        scale = each._foreach_sqrt(v)
        each._foreach_div_(scale, (1 - beta2**t) ** 0.5)
        each._foreach_add_(scale, group["eps"])
        each._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        each._foreach_addcdiv_(weights, m, scale, -lr / (1 - beta1**t))

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)
            state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
        return state


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for the two-dimensional weights of the hidden layers."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` of the iteration: None is bfloat16 on a GPU and float32 on a CPU, most of which have no fast bf16."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            grads = [p.grad for p in weights if p.grad is not None]
            for p in weights:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum"] for p in weights]
            each._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = each._foreach_lerp(grads, buffers, group["momentum"])
            each._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for same in _by_shape(weights):
                rows, columns = weights[same[0]].shape
                size = 0.2 * max(rows, columns) ** 0.5
                turned = newton_schulz(torch.stack([updates[i] for i in same]), dtype=group["dtype"])
                turned = turned.to(weights[same[0]].dtype)
                each._foreach_add_([weights[i] for i in same], list(turned), alpha=-group["lr"] * size)


def newton_schulz(updates: Tensor, *, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """About U Vᵀ for each matrix U S Vᵀ of the batch `updates` [N, rows, columns]."""
    a, b, c = QUINTIC
    x = updates.to(dtype or (torch.bfloat16 if updates.is_cuda else torch.float32))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _by_shape(weights: list[Tensor]) -> list[list[int]]:
    """The places of weights that share a shape, in order of first appearance; sixteen at most, to bound memory."""
    places: dict[torch.Size, list[int]] = {}
    for i, p in enumerate(weights):
        places.setdefault(p.shape, []).append(i)
    return [same[i : i + 16] for same in places.values() for i in range(0, len(same), 16)]


def make_optimizers(
    model: nn.Module,
    *,
    name: str = "muon",
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    momentum: float = 0.95,
) -> list[torch.optim.Optimizer]:
    """The optimizers for a decoder: `muon` (Muon for hidden matrices, AdamW for the rest) or `adamw` for all.

    A weight counts as hidden if it has two dimensions and belongs to no embedding and not to the head.
    """
    ends = {id(p) for key, m in model.named_modules() for p in m.parameters(recurse=False) if _is_end(key, m)}
    weights = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in weights if p.ndim == 2 and id(p) not in ends]
    rest = [p for p in weights if p.ndim != 2 or id(p) in ends]
    plain: dict[str, Any] = {"params": rest, "weight_decay": 0.0}
    if name == "adamw":
        groups = [{"params": hidden, "weight_decay": weight_decay}, plain]
        return [AdamW([g for g in groups if g["params"]], lr=lr, betas=betas)]
    both: list[torch.optim.Optimizer] = [AdamW([plain], lr=lr, betas=betas)]
    if hidden:
        both.insert(0, Muon(hidden, lr=lr, momentum=momentum, weight_decay=weight_decay))
    return both


def _is_end(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) or name.rsplit(".", 1)[-1] in ("embed_tokens", "lm_head")
