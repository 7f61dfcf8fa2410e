"""Adapters: a few new weights beside a model that stays as it is.

    y = x Wᵀ + s · (x Aᵀ) Bᵀ            A [r, C], B [N, r], r small        (Hu et al. 2021, arXiv:2106.09685, §4.1)

What fine-tuning changes in a matrix has a low rank, so the change is learned as a product of two thin matrices; W gets
no gradient and no running means. A starts as small noise and B at zero, so that the model starts as it was.

    kind      what y is                                        s
    lora      x Wᵀ + s (x Aᵀ) Bᵀ                               α / r
    rslora    the same                                         α / √r      a large r does not make the change small
                                                               (Kalajdzievski 2023, arXiv:2312.03732)
    dora      m ⊙ (x Wᵀ + s (x Aᵀ) Bᵀ) / ‖W + s B A‖           α / r       lengths m [N] of the rows are learned apart
                                                               from their directions (Liu et al. 2024, arXiv:2402.09353)

DoRA's norm runs over each row and is taken as a constant in the backward pass (§4.3). With `quantize_base` the frozen
weights are kept in four bits (nf4.py): QLoRA.

`merge_adapters` adds the active adapter into the weights: an ordinary model again, which gives the same logits up to
rounding. **Several adapters** may hang on one base, each by a name; one of them, or none, is active at a time. Files:
adapter_files.py.

Legend: N outputs, C inputs, r rank, s scale, α alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.kernels.lora import lora_linear
from luthier.models.nf4 import Nf4Linear
from luthier.models.transformer import Linear, Transformer

__all__ = [
    "TARGETS",
    "AdaptedLinear",
    "LoraConfig",
    "LoraError",
    "add_adapter",
    "is_quantised",
    "merge_adapters",
    "quantize_base",
    "use_adapter",
]

Kind = Literal["lora", "rslora", "dora"]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraError(ValueError):
    """An adapter that cannot be: its settings, its file, or what it is put on."""


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter is made of."""

    rank: int = 8
    """r, the number of directions in which a matrix may change."""
    alpha: float = 16.0
    """α, the strength: the change is multiplied by α / r (rslora: α / √r)."""
    kind: Kind = "lora"
    """lora, rslora or dora."""
    targets: tuple[str, ...] = TARGETS
    """Which products get an adapter; all of a layer's by default, which QLoRA (§4) found to matter most."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise LoraError(f"rank = {self.rank}, alpha = {self.alpha}: both must be greater than zero")
        if self.kind not in get_args(Kind):
            raise LoraError(f"kind = {self.kind!r}: choose one of {', '.join(get_args(Kind))}")
        if not self.targets or set(self.targets) - set(TARGETS):
            raise LoraError(f"targets = {', '.join(self.targets) or 'none'}: choose from {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """s, what the low-rank product is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


# ---------------------------------------------------------------- the layer


class Adapter(nn.Module):
    """One adapter of one layer: A, B and, for DoRA, m."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)

    def changed(self, weight: Tensor) -> Tensor:
        """W + s·B·A, for DoRA with each row scaled to its learned length."""
        sum_NC = weight + self.scale * (self.b @ self.a).to(weight.dtype)
        if self.magnitude is None:
            return sum_NC
        return sum_NC * (self.magnitude / sum_NC.norm(dim=1))[:, None].to(weight.dtype)


class AdaptedLinear(nn.Module):
    """A frozen linear layer and the adapters that hang on it."""

    def __init__(self, base: nn.Linear | Nf4Linear) -> None:
        super().__init__()
        self.base, self.adapters, self.active = base, nn.ModuleDict(), ""

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.base(x)
        y = self.product(x)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """forward(x) without the bias."""
        if not self.active:
            return self.base.product(x) if isinstance(self.base, Nf4Linear) else F.linear(x, self.base.weight)
        adapter = cast(Adapter, self.adapters[self.active])
        y = self._changed_product(x, adapter)
        if adapter.magnitude is not None:
            y = y * (adapter.magnitude / self._length(adapter)).to(y.dtype)
        return y

    def _changed_product(self, x: Tensor, adapter: Adapter) -> Tensor:
        if isinstance(self.base, Nf4Linear):
            return self.base.product(x) + adapter.scale * F.linear(F.linear(x, adapter.a), adapter.b)
        operands = (x, self.base.weight, adapter.a, adapter.b)
        if torch.is_autocast_enabled(x.device.type):  # a kernel of ours is not on autocast's list
            operands = [t.to(torch.get_autocast_dtype(x.device.type)) for t in operands]
        return lora_linear(*operands, scale=adapter.scale)

    @torch.no_grad()
    def _length(self, adapter: Adapter) -> Tensor:
        """‖W + s B A‖ of each row."""
        return (self.base.weight + adapter.scale * (adapter.b @ adapter.a)).norm(dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that computes the same as this one with its active adapter."""
        weight = self.base.weight
        if self.active:
            weight = cast(Adapter, self.adapters[self.active]).changed(weight)
        linear = Linear(weight.shape[1], weight.shape[0], bias=self.base.bias is not None)
        linear.weight, linear.bias = nn.Parameter(weight.detach()), self.base.bias
        return linear.requires_grad_()


# ---------------------------------------------------------------- a model with adapters


def layers_of(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[tuple[str, Any]]:
    """Every product of the layers that is of `kind`, by its name: `layers.0.self_attn.q_proj`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, kind) and name.rsplit(".", 1)[-1] in TARGETS:
            yield name, module


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def quantize_base(model: Transformer) -> None:
    """Keep the weights of all products in the layers as NF4 from here on, frozen; embedding, head and norms stay.

    LoraError where adapters hang on them."""
    if next(layers_of(model, AdaptedLinear), None):
        raise LoraError("adapters hang on this base already: keep it in four bits before they do")
    for name, linear in layers_of(model, nn.Linear):
        _put(model, name, Nf4Linear(linear))
    model.requires_grad_(False)


def add_adapter(
    model: Transformer,
    config: LoraConfig | None = None,
    name: str = "default",
    generator: torch.Generator | None = None,
) -> None:
    """Hang a new adapter on `model` and make it the active one; only its weights are trained from here on.

    A is drawn from `generator` (default: seeded with 0), uniform within ±1/√C; B is zero. LoraError: the name is taken.
    """
    config, generator = config or LoraConfig(), generator or torch.Generator().manual_seed(0)
    for place, base in targets_of(model, config, name):
        N, C = base.weight.shape
        weight = base.weight.detach()
        a = (torch.rand(config.rank, C, generator=generator) * 2 - 1) / math.sqrt(C)
        b, magnitude = torch.zeros(N, config.rank), weight.norm(dim=1) if config.kind == "dora" else None
        hang(model, place, name, Adapter(a.to(weight), b.to(weight), config.scale, magnitude))
    use_adapter(model, name)


def targets_of(model: Transformer, config: LoraConfig, name: str) -> list[tuple[str, Any]]:
    """The layers that are to get an adapter, each with its base."""
    if not name or "." in name:
        raise LoraError(f"an adapter cannot be called {name!r}: choose a name without a dot")
    if any(name in layer.adapters for _, layer in layers_of(model, AdaptedLinear)):
        raise LoraError(f"there is an adapter {name!r} already")
    wanted = [p for p, _ in layers_of(model, (nn.Linear, Nf4Linear, AdaptedLinear)) if p.endswith(config.targets)]
    bases = ((p, model.get_submodule(p)) for p in wanted)
    return [(p, b.base if isinstance(b, AdaptedLinear) else b) for p, b in bases]


def hang(model: nn.Module, place: str, name: str, adapter: Adapter) -> None:
    layer = model.get_submodule(place)
    if not isinstance(layer, AdaptedLinear):
        layer = AdaptedLinear(cast(Any, layer))
        _put(model, place, layer)
    layer.adapters[name] = adapter


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Make the adapter `name` the active and only trained one; None switches all off, and the base speaks."""
    layers = [layer for _, layer in layers_of(model, AdaptedLinear)]
    known = {n for layer in layers for n in layer.adapters}
    if name is not None and name not in known:
        raise LoraError(f"no adapter {name!r}; there are {', '.join(sorted(known)) or 'none'}")
    model.requires_grad_(False)
    for layer in layers:
        layer.active = name if name in layer.adapters else ""
        if layer.active:
            layer.adapters[name].requires_grad_()


def is_quantised(model: nn.Module) -> bool:
    """Whether the base's weights are kept in four bits."""
    return any(isinstance(module, Nf4Linear) for module in model.modules())


def merge_adapters(model: Transformer) -> Transformer:
    """Turn every adapted or quantised layer into a plain one, in place; the active adapter is in its weights."""
    for name, layer in layers_of(model, AdaptedLinear):
        _put(model, name, layer.merged())
    for name, layer in layers_of(model, Nf4Linear):
        _put(model, name, AdaptedLinear(layer).merged())
    return model.requires_grad_()
