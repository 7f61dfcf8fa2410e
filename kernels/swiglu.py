"""SwiGLU's gate: one half of a feed-forward layer decides how much of the other passes.

    swiglu(a, b) = silu(a) ⊙ b,    silu(a) = a · σ(a)                     (Shazeer 2020, arXiv:2002.05202, §2, eq. 5)
    geglu(a, b)  = gelu(a) ⊙ b,    gelu(a) = a · Φ(a)                                                     (the same)

Φ is the normal distribution's function ½(1 + erf(a/√2)); many models, Gemma among them, were trained with an
approximation to it, ½(1 + tanh(√(2/π)·(a + 0.044715 a³))) (Hendrycks & Gimpel 2016, arXiv:1606.08415, §2).

a = x·W_gate and b = x·W_up, both [..., F]. Backward, with the incoming gradient dy:

    db = dy ⊙ f(a)
    da = dy ⊙ b ⊙ f′(a),    silu′(a) = s·(1 + a·(1 − s)) with s = σ(a),    gelu′(a) = Φ(a) + a·φ(a)

**On a card** this is memory traffic alone: read a and b, write y; backward read a, b and dy, write da and db. f(a) is
made again rather than kept: it costs nothing where memory is what one waits for. On a CPU the same in one pass where
Numba is there (row_loops.py); PyTorch's own two nodes (silu, multiply) keep silu(a), for to make it again would cost
them a quarter more time (4096×512: 20.5 ms against 16.5 ms on one core).

Legend: N rows (any number of leading dimensions), F feed-forward size; R rows and BLOCK columns in a program.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from luthier.kernels.launch import (
    Impl,
    LaunchError,
    check_floats,
    check_together,
    jit,
    launch,
    narrow,
    power,
    tl,
    use_triton,
)
from luthier.kernels.processor import closed_loops, in_one_pass

__all__ = ["cost", "geglu", "geglu_reference", "swiglu", "swiglu_reference"]

EXAMPLE = {"rows": 8192, "columns": 14336}


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The formula, one operation at a time. gate, up: [..., F]."""
    return gate * gate.sigmoid() * up


def geglu_reference(gate: Tensor, up: Tensor, approximate: str = "tanh") -> Tensor:
    """The formula, one operation at a time. gate, up: [..., F]; approximate: "tanh", or "none" for erf."""
    if approximate == "tanh":
        return gate * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up
    return gate * 0.5 * (1 + torch.erf(gate * 0.5**0.5)) * up


def cost(rows: int, columns: int, itemsize: int) -> dict[str, tuple[int, int]]:
    """Bytes that must cross the card's memory and operations, forward and backward."""
    numbers = rows * columns
    return {"forward": (3 * numbers * itemsize, 5 * numbers), "backward": (5 * numbers * itemsize, 10 * numbers)}


# ---------------------------------------------------------------- Numba


def _forward_loop(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty_like(gate)
    in_one_pass("swiglu", (), (_flat(gate), _flat(up), _flat(y)))
    return y


def _backward_loop(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    da, db = torch.empty_like(gate), torch.empty_like(gate)
    in_one_pass("swiglu_back", (), tuple(map(_flat, (gate, up, dy, da, db))))
    return da, db


# Operations of their own, into which torch.compile does not look
@torch.library.custom_op("luthier::swiglu", mutates_args=())
def _closed(gate: Tensor, up: Tensor) -> Tensor:
    return _forward_loop(gate, up)


@torch.library.custom_op("luthier::swiglu_backward", mutates_args=())
def _closed_backward(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return _backward_loop(gate, up, dy)


@_closed.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate)


@_closed_backward.register_fake
def _(gate: Tensor, up: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate)


class _Loops(torch.autograd.Function):
    """swiglu by row_loops.py."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return (_closed if torch.compiler.is_compiling() else _forward_loop)(gate, up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        (gate, up), dy = ctx.saved_tensors, gradients[0].contiguous()
        return (_closed_backward if torch.compiler.is_compiling() else _backward_loop)(gate, up, dy)


def _flat(x: Tensor) -> Any:
    return x.detach().view(-1).numpy()


# ---------------------------------------------------------------- Triton


@jit
def _gate(a, KIND: tl.constexpr):
    """f(a) and f′(a)."""
    if KIND == "silu":
        s = tl.sigmoid(a)
        return a * s, s * (1 + a * (1 - s))
    elif KIND == "tanh":
        t = 2 * tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a)) - 1  # tanh u = 2σ(2u) − 1
        slope = 0.7978845608028654 * (1 + 0.134145 * a * a)
        return 0.5 * a * (1 + t), 0.5 * (1 + t) + 0.5 * a * (1 - t * t) * slope
    else:
        phi = 0.5 * (1 + tl.erf(a * 0.7071067811865476))
        return a * phi, phi + a * 0.3989422804014327 * tl.exp(-0.5 * a * a)


@jit
def _places(N, F, R: tl.constexpr, BLOCK: tl.constexpr):
    """The rows and columns of this program, and which of them exist."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None]
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    return row, column, (row < N) & (column < F)


@jit(lengths=("N",))
def _forward(A, B, Y, N, a_row, b_row, F: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr):
    row, column, inside = _places(N, F, R, BLOCK)
    a = tl.load(A + row * a_row + column, inside, other=0.0).to(tl.float32)
    b = tl.load(B + row * b_row + column, inside, other=0.0).to(tl.float32)
    y, _ = _gate(a, KIND)
    tl.store(Y + row * F + column, narrow(y * b, Y.dtype.element_ty), inside)


@jit(lengths=("N",))
def _backward(
    A, B, Dy, Da, Db, N, a_row, b_row, F: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr
):
    row, column, inside = _places(N, F, R, BLOCK)
    a = tl.load(A + row * a_row + column, inside, other=0.0).to(tl.float32)
    b = tl.load(B + row * b_row + column, inside, other=0.0).to(tl.float32)
    dy = tl.load(Dy + row * F + column, inside, other=0.0).to(tl.float32)
    value, slope = _gate(a, KIND)
    tl.store(Da + row * F + column, narrow(dy * b * slope, Da.dtype.element_ty), inside)
    tl.store(Db + row * F + column, narrow(dy * value, Db.dtype.element_ty), inside)


def settings(columns: int) -> dict[str, int]:
    """Rows and columns in a program of 128 threads: 16 numbers a thread."""
    BLOCK = min(power(columns), 2048)
    return {"R": 2048 // BLOCK, "BLOCK": BLOCK, "num_warps": 4}


def _rows(x: Tensor) -> Tensor:
    """[..., F] as [N, F] with components side by side; halves of one tensor stay where they are."""
    x2 = x.reshape(-1, x.shape[-1])
    return x2 if x2.stride(1) == 1 else x2.contiguous()


class _TritonGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: str) -> Tensor:
        a, b = _rows(gate), _rows(up)
        (N, columns), s = a.shape, settings(a.shape[1])
        y = torch.empty(a.shape, dtype=a.dtype, device=a.device)
        ctx.grid = (-(-N // s["R"]), -(-columns // s["BLOCK"]))
        launch(_forward, ctx.grid, a, b, y, N, a.stride(0), b.stride(0), F=columns, KIND=kind, **s)
        ctx.save_for_backward(a, b)
        ctx.kind = kind
        return y.view(gate.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        (N, columns), s = a.shape, settings(a.shape[1])
        dy = gradients[0].reshape(-1, columns).contiguous()
        da, db = torch.empty_like(dy), torch.empty_like(dy)
        launch(_backward, ctx.grid, a, b, dy, da, db, N, a.stride(0), b.stride(0), F=columns, KIND=ctx.kind, **s)
        return da.view(gradients[0].shape), db.view(gradients[0].shape), None


def trial(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Launch every kernel of this file, for proof.py; `cost(**EXAMPLE, …)` is its cost at the size of a real batch."""
    gate, up = (torch.zeros(tokens, EXAMPLE["columns"], dtype=dtype, requires_grad=True) for _ in range(2))
    for kind in ("silu", "tanh", "none"):
        y: Any = _TritonGate.apply(gate, up, kind)
        y.backward(y)


# ---------------------------------------------------------------- public


def swiglu(gate: Tensor, up: Tensor, *, impl: Impl = "auto") -> Tensor:
    """silu(gate) ⊙ up for tensors of equal shape [..., F]; first derivatives only, but by PyTorch's own two operations
    where these do the work. Raises ValueError where the shapes differ."""
    if _on_card("swiglu", gate, up, impl):
        return _TritonGate.apply(gate, up, "silu")  # pyright: ignore[reportReturnType]
    if closed_loops(gate, up):
        return _Loops.apply(gate, up)  # pyright: ignore[reportReturnType]
    return torch_f.silu(gate) * up


def geglu(gate: Tensor, up: Tensor, *, approximate: Literal["tanh", "none"] = "tanh", impl: Impl = "auto") -> Tensor:
    """gelu(gate) ⊙ up for tensors of equal shape [..., F]; `approximate` by tanh, or "none" for erf."""
    if approximate not in ("tanh", "none"):
        raise ValueError(f"geglu: approximate is {approximate!r}; it may be 'tanh' or 'none'")
    if _on_card("geglu", gate, up, impl):
        return _TritonGate.apply(gate, up, approximate)  # pyright: ignore[reportReturnType]
    return torch_f.gelu(gate, approximate=approximate) * up


def _on_card(name: str, gate: Tensor, up: Tensor, impl: Impl) -> bool:
    """Whether Triton takes the work. Raises ValueError for tensors that do not belong together."""
    check_together(name, gate=gate, up=up)
    if gate.shape != up.shape:
        raise ValueError(f"{name}: gate has shape {tuple(gate.shape)}, up has {tuple(up.shape)}; they must be equal")
    if not use_triton(name, impl, gate):
        return False
    check_floats(name, gate=gate, up=up)
    if gate.dtype != up.dtype:
        raise LaunchError(f"{name}: gate is {gate.dtype}, up is {up.dtype}; they must be equal")
    return True
