"""Who else can do what our kernels do, where it is installed: PyTorch itself, its compiler, and the usual libraries.

Each function gives tools by name, called as ours is. What cannot be imported is left out; what fails when it runs (a
backend that does not take the shape, a compiler that is missing) gets a row that says so. Compiled tools are for a card
only: on a CPU each would take half a minute to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.attention import attention_reference
from luthier.kernels.launch import Impl

Tools = dict[str, Callable[..., Any]]
EAGER, COMPILED, FLEX, LIGER = "torch eager", "torch.compile", "FlexAttention", "Liger"
BITS = "bitsandbytes"
LATE = (COMPILED, FLEX, BITS)  # compiled for one shape, or other by design: compared with ours at full size only


@dataclass(frozen=True)
class Where:
    """Where and how it runs."""

    device: torch.device
    dtype: torch.dtype
    impl: Impl
    full: bool = False
    """Attention without a causal mask."""

    def normal(self, *shape: int, seed: int = 0, scale: float = 1.0, learned: bool = True) -> Tensor:
        """Normal numbers, the same for a seed on one device; with a gradient where they are learned."""
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32) * scale
        return x.to(self.dtype).requires_grad_(learned)

    def labels(self, count: int, vocabulary: int) -> Tensor:
        return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(5)).to(self.device)


@cache
def _module(name: str) -> Any:
    """A module, or None where it is not installed or does not load."""
    try:
        return import_module(name)
    except Exception:  # a library that was built for another torch raises whatever it likes
        return None


def _on_card(where: Where) -> bool:
    return where.device.type == "cuda"


def plain_ones(where: Where, plain: Callable[..., Any], eager: str = EAGER) -> Tools:
    """The formula as it is, and compiled."""
    tools: Tools = {eager: plain}
    if _on_card(where):
        tools[COMPILED] = torch.compile(plain, dynamic=False)
    return tools


# ---------------------------------------------------------------- attention


def attention(where: Where, B: int, T: int, H: int, K: int, D: int, causal: bool) -> Tools:
    """PyTorch's backends and its plain formula, FlexAttention, FlashAttention 2 and 3."""
    if not _on_card(where):
        mask = None if causal else torch.ones(1, T, T, dtype=torch.bool)
        return {EAGER: partial(attention_reference, mask_BTS=mask), "SDPA": partial(_sdpa, causal=causal, backend=None)}
    backends = torch.nn.attention.SDPBackend
    tools: Tools = {
        f"SDPA {name}": partial(_sdpa, causal=causal, backend=backend)
        for name, backend in (
            ("cuDNN", backends.CUDNN_ATTENTION),
            ("flash", backends.FLASH_ATTENTION),
            ("efficient", backends.EFFICIENT_ATTENTION),
        )
    }
    if B * H * T * T <= 2**31:  # the plain formula holds all scores, several times
        tools[EAGER] = partial(_sdpa, causal=causal, backend=backends.MATH)
    if causal and T == 8192 and H == K:  # it takes some twenty seconds to compile a shape
        tools[FLEX] = _flex(T, where.device)
    for module, name in (("flash_attn", "FlashAttention-2"), ("flash_attn_interface", "FlashAttention-3")):
        found = _module(module)
        if found is not None:
            tools[name] = partial(_flash, found.flash_attn_func, causal)
    return tools


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, backend: Any) -> Tensor:
    call = partial(F.scaled_dot_product_attention, is_causal=causal, enable_gqa=q.shape[2] != k.shape[2])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if backend is None:
        return call(q, k, v).transpose(1, 2)
    with torch.nn.attention.sdpa_kernel(backend):
        return call(q, k, v).transpose(1, 2)


def _flex(T: int, device: torch.device) -> Callable[..., Tensor]:
    flex: Any = _module("torch.nn.attention.flex_attention")
    mask = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=device)
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    return lambda q, k, v: compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)


def _flash(function: Callable[..., Any], causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = function(q, k, v, causal=causal)
    return out[0] if isinstance(out, tuple) else out


def decode(where: Where, lengths: Tensor) -> Tools:
    """One query a row over the whole cache."""
    tools: Tools = {"SDPA": partial(_sdpa, causal=False, backend=None)}
    flash = _module("flash_attn") if _on_card(where) else None
    if flash is not None:
        tools["FlashAttention-2"] = lambda q, k, v: flash.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
    return tools


# ---------------------------------------------------------------- row by row


def _liger(where: Where, module: str, name: str) -> Any:
    """A function of Liger's, None where it is not installed."""
    found = _module(f"liger_kernel.{module}") if _on_card(where) else None
    return getattr(found, name, None)


def rms_norm(where: Where, plain: Callable[..., Any]) -> Tools:
    """PyTorch's own, the formula compiled, Liger's."""
    own = lambda x, w: F.rms_norm(x, w.shape, w, 1e-5)  # noqa: E731
    tools: Tools = {**plain_ones(where, plain), "torch rms_norm": own}
    liger = _liger(where, "ops.rms_norm", "LigerRMSNormFunction")
    if liger is not None:
        tools[LIGER] = lambda x, w: liger.apply(x, w, 1e-5, 0.0, "llama", False)
    return tools


def add_rms_norm(where: Where, plain: Callable[..., Any]) -> Tools:
    """The formula, compiled, Liger's."""
    tools = plain_ones(where, plain)
    liger = _liger(where, "ops.fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    if liger is not None:
        tools[LIGER] = lambda x, residual, w: liger.apply(x, residual, w, 1e-5)
    return tools


def layer_norm(where: Where, plain: Callable[..., Any]) -> Tools:
    """PyTorch's own, the formula compiled, Liger's."""
    own = lambda x, w, b: F.layer_norm(x, w.shape, w, b, 1e-5)  # noqa: E731
    tools: Tools = {**plain_ones(where, plain), "torch layer_norm": own}
    liger = _liger(where, "ops.layer_norm", "LigerLayerNormFunction")
    if liger is not None:
        tools[LIGER] = lambda x, w, b: liger.apply(x, w, b, 1e-5)
    return tools


def swiglu(where: Where, plain: Callable[..., Any]) -> Tools:
    """PyTorch's two operations, the formula compiled, Liger's."""
    tools = {**plain_ones(where, plain), EAGER: lambda a, b: F.silu(a) * b}
    liger = _liger(where, "ops.swiglu", "LigerSiLUMulFunction")
    return tools if liger is None else {**tools, LIGER: liger.apply}


def geglu(where: Where, plain: Callable[..., Any]) -> Tools:
    """PyTorch's two operations, the formula compiled, Liger's."""
    tools = {**plain_ones(where, plain), EAGER: lambda a, b: F.gelu(a, approximate="tanh") * b}
    liger = _liger(where, "ops.geglu", "LigerGELUMulFunction")
    return tools if liger is None else {**tools, LIGER: liger.apply}


# ---------------------------------------------------------------- loss


def cross_entropy(where: Where, labels: Tensor) -> Tools:
    """PyTorch's own in float32, as models' code has it, and compiled. Liger's makes the gradient in its forward pass,
    over the logits; it is measured in linear_cross_entropy."""
    return plain_ones(where, lambda z: F.cross_entropy(z.float(), labels, reduction="sum"))


def linear_cross_entropy(where: Where, labels: Tensor) -> Tools:
    """The layer and the loss apart, and compiled; Liger's."""
    unfused = lambda x, w: F.cross_entropy(F.linear(x, w).float(), labels, reduction="sum")  # noqa: E731
    tools = plain_ones(where, unfused)
    liger = _liger(where, "transformers.fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyLoss")
    if liger is not None:
        loss = liger(reduction="sum")
        tools[LIGER] = lambda x, w: loss(w, x, labels).float()
    return tools


# ---------------------------------------------------------------- optimizers

STEPS_BEFORE = 2.0
CHECKED = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def _optimizer(make: Callable[..., Any], states: tuple[str, ...] = ()) -> Callable[..., None]:
    """A tool that steps an optimizer of someone else's. Its state is filled with what the lists hold, at step 2."""
    kept: dict[int, Any] = {}

    def step(p: list[Tensor], g: list[Tensor], *lists: list[Tensor]) -> None:
        optimizer = kept.get(id(p[0]))
        if optimizer is None:
            kept.clear()
            optimizer = kept[id(p[0])] = make(p, **CHECKED)
            for i, weight in enumerate(p):
                weight.grad = g[i]
                if states:
                    fused = optimizer.param_groups[0].get("fused")
                    count = torch.tensor(STEPS_BEFORE, device=weight.device if fused else None)
                    named = {name: of[i] for name, of in zip(states, lists, strict=True)}
                    optimizer.state[weight] = {"step": count, **named}
        optimizer.step()

    return step


def adamw(where: Where, plain: Callable[..., Any]) -> Tools:
    """PyTorch's AdamW as a loop over lists of tensors, fused, and the plain formula a tensor at a time."""
    states = ("exp_avg", "exp_avg_sq")
    tools: Tools = {EAGER: plain, "AdamW foreach": _optimizer(partial(torch.optim.AdamW, foreach=True), states)}
    tools["AdamW fused"] = _optimizer(partial(torch.optim.AdamW, fused=True), states)
    return tools


def adamw_8bit(where: Where, plain: Callable[..., Any]) -> Tools:
    """The formula a tensor at a time; bitsandbytes, whose 256 values differ a little, but not in the first step."""
    found = _module("bitsandbytes") if _on_card(where) else None
    return {EAGER: plain} if found is None else {EAGER: plain, BITS: _optimizer(found.optim.AdamW8bit)}
