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
1; neither is wanted.

The arithmetic of a step is in kernels/adamw.py, adamw_8bit.py and muon.py: Triton on a card, a few calls for all
tensors on a CPU, the same result. What is here is state: which weights, which running means, which step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels.adamw import adamw_step
from luthier.kernels.adamw_8bit import adamw_8bit_step, empty_state
from luthier.kernels.muon import newton_schulz

__all__ = ["AdamW", "AdamW8bit", "Muon", "make_optimizers"]

each: Any = torch  # the `_foreach_` operations are public in torch's documentation, but not to type checkers


class _Stepping(torch.optim.Optimizer):
    """What the three share: a step is taken by each group of weights that have a gradient; states keep their dtype."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(group, weights, [p.grad for p in weights])

    def _step(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """PyTorch casts a state to the dtype of its weight: codes of 8 bits and means in float32 would be lost."""
        super().load_state_dict(state_dict)
        ours = [p for group in self.param_groups for p in group["params"]]
        theirs = [number for group in state_dict["param_groups"] for number in group["params"]]
        for p, number in zip(ours, theirs, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if self.state[p][name].dtype != value.dtype:
                    self.state[p][name] = value.detach().to(self.state[p][name].device, copy=True)


class AdamW(_Stepping):
    """Adam with decoupled weight decay; groups may override lr and weight_decay.

    Weights in bfloat16 have their means in float32 and are rounded by chance, by `seed`: see kernels/adamw.py.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.seed = seed
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _step(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
        states = [self._state(p) for p in weights]
        for state in states:
            state["step"] += 1
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        lists = [weights, grads, [s["m"] for s in states], [s["v"] for s in states]]
        place = next(i for i, one in enumerate(self.param_groups) if one is group)
        seed = self.seed + 7919 * place  # other bits for each group
        adamw_step(*(_here(x) for x in lists), step=int(states[0]["step"]), seed=seed, **options)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)
            wide = torch.promote_types(p.dtype, torch.float32)
            state["m"], state["v"] = torch.zeros_like(p, dtype=wide), torch.zeros_like(p, dtype=wide)
        return state


def _here(tensors: list[Tensor]) -> list[Tensor]:
    """What of each tensor lies on this device: all of it, or this process's part of one that is cut (FSDP)."""
    return [x.to_local() if hasattr(x, "to_local") else x for x in tensors]  # pyright: ignore[reportAttributeAccessIssue]


class AdamW8bit(_Stepping):
    """AdamW that keeps its two means in one byte each (Dettmers et al. 2022): 2 bytes a weight instead of 8."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _step(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        for p, g in zip(weights, grads, strict=True):
            state = self.state[p]
            if not state:
                state.update({"step": torch.zeros((), dtype=torch.int64), **empty_state(p)})
            state["step"] += 1
            adamw_8bit_step(p, g, state, step=int(state["step"]), **options)


class Muon(_Stepping):
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

    def _step(self, group: dict[str, Any], weights: list[Tensor], grads: list[Tensor]) -> None:
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
    seed: int = 0,
    mup_base_width: int = 0,
) -> list[torch.optim.Optimizer]:
    """The optimizers for a decoder: `muon` (Muon for hidden matrices, AdamW for the rest), `adamw` for all, or
    `adamw-8bit` (for hidden matrices; embedding, head and norms keep whole states, as the paper has it).

    `seed` is that of AdamW's rounding of bfloat16 weights. A weight counts as hidden if it has two dimensions and
    belongs to no embedding and not to the head. `mup_base_width` divides rates by the width (models/mup.py; 0: not).
    """
    ends = {id(p) for key, m in model.named_modules() for p in m.parameters(recurse=False) if _is_end(key, m)}
    factors = _factors(model, mup_base_width)
    weights = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in weights if p.ndim == 2 and id(p) not in ends]
    rest = [p for p in weights if p.ndim != 2 or id(p) in ends]
    plain = _groups(rest, lr, 0.0, factors)
    if name == "adamw":
        return [AdamW([*_groups(hidden, lr, weight_decay, factors), *plain], lr=lr, betas=betas, seed=seed)]
    both: list[torch.optim.Optimizer] = [AdamW(plain, lr=lr, betas=betas, seed=seed)] if plain else []
    if hidden and name == "adamw-8bit":
        both.insert(0, AdamW8bit(_groups(hidden, lr, weight_decay, factors), lr=lr, betas=betas))
    elif hidden:
        roots = {p: factor**0.5 for p, factor in factors.items()}
        both.insert(0, Muon(_groups(hidden, lr, weight_decay, roots), lr=lr, momentum=momentum))
    return both


def _factors(model: Any, mup_base_width: int) -> dict[Tensor, float]:
    """What the learning rate of each weight is multiplied by; 1 where nothing is said."""
    if not mup_base_width:
        return {}
    from luthier.models.mup import rates_by_width

    rates, weights = rates_by_width(model, mup_base_width), dict(model.named_parameters())
    return {weights[name]: factor for name, factor in rates.items()}


def _groups(weights: list[nn.Parameter], lr: float, decay: float, factors: dict[Tensor, float]) -> list[dict[str, Any]]:
    """A group for each learning rate; what decays a step, lr · decay, stays the same."""
    of = [factors.get(p, 1.0) for p in weights]
    return [
        {
            "params": [p for p, its in zip(weights, of, strict=True) if its == factor],
            "lr": lr * factor,
            "weight_decay": decay / factor,
        }
        for factor in dict.fromkeys(of)
    ]


def _is_end(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) or name.rsplit(".", 1)[-1] in ("embed_tokens", "lm_head")
