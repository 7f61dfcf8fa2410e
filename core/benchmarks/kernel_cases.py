"""What `luthier bench kernels` measures: for each kernel the shapes, the inputs, the formula, and who else can do it.

A `Problem` is one kernel on one shape: inputs, the plain formula that it is judged by, the tools that do it, and the
bytes and operations of each pass by the kernel's own `cost`. A tool takes the inputs and returns the results; one that
`steps` changes its inputs in place.

A product of [m, k] and [k, n] counts 2·m·k·n operations. Causal attention counts half of the full square, forward two
products and backward five, as papers do; what a backward pass computes twice is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from luthier.core.benchmarks import kernel_peers as peers
from luthier.core.benchmarks.kernel_peers import Tools, Where
from luthier.kernels import (
    adamw,
    adamw_8bit,
    attention,
    cross_entropy,
    decode_attention,
    layer_norm,
    linear_cross_entropy,
    lora,
    muon,
    rms_norm,
    rope,
    swiglu,
)
from luthier.kernels.budget import FLOOR

__all__ = ["KERNELS", "Kernel", "Problem", "Where"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """One kernel on one shape."""

    name: str
    inputs: list[Any]
    plain: Callable[..., Any]
    tools: Tools
    """By name, "ours" first."""
    passes: dict[str, tuple[int, int]]
    """forward, backward, "forward and backward" or step → bytes and operations."""
    floor: float = FLOOR
    steps: int = 0
    """Tools change their inputs, lists of tensors, in place; so many steps are taken before the gate looks."""
    near: float = 1.0
    """How many times farther from each other two tools' results may be at full size than usual."""
    logits: int = 0
    """Bytes of the logits that the kernel does not hold."""


@dataclass(frozen=True)
class Kernel:
    """One kernel's line in the benchmark."""

    letters: str
    """What --shape gives."""
    build: Callable[[Where, Shape], Problem]
    products: bool
    """Bound by arithmetic: TFLOP/s; otherwise by memory: GB/s."""
    card: Sequence[Shape]
    cpu: Shape
    small: Shape
    """For the gate and for the interpreter."""
    function: str
    """How a function of one's own is called."""
    whole: bool = False
    """In float32 unless --dtype says otherwise."""


# ---------------------------------------------------------------- attention


def _attention(where: Where, shape: Shape) -> Problem:
    B, T, H, K, D = shape if len(shape) == 5 else (*shape[:3], shape[2], shape[3])
    causal = not where.full
    inputs = [where.normal(B, T, n, D, seed=s) for s, n in enumerate((H, K, K))]
    mask = None if causal else torch.ones(1, T, T, dtype=torch.bool, device=where.device)
    options: Any = {"causal": causal, "impl": where.impl}
    tools: Tools = {"ours": partial(attention.attention, **options), **peers.attention(where, B, T, H, K, D, causal)}
    name = f"{'causal' if causal else 'full'}, B {B}, T {T:,}, H {H}{f'/{K}' * (K != H)}, D {D}"
    plain = partial(attention.attention_reference, mask_BTS=mask)
    return Problem(name, inputs, plain, tools, attention.cost(B, T, H, K, D, where.dtype.itemsize, causal=causal))


def _decode(where: Where, shape: Shape) -> Problem:
    B, S, H, K, D = shape
    q, k, v = (where.normal(B, t, n, D, seed=s, learned=False) for s, (t, n) in enumerate([(1, H), (S, K), (S, K)]))
    lengths = torch.full((B,), S, dtype=torch.int32, device=where.device)
    plain = lambda q, k, v: decode_attention.decode_attention_reference(q, k, v, lengths)  # noqa: E731
    ours = lambda q, k, v: decode_attention.decode_attention(q, k, v, lengths, impl=where.impl)  # noqa: E731
    tools: Tools = {"ours": ours, **peers.decode(where, lengths)}
    passes = decode_attention.cost(B, S, H, K, D, where.dtype.itemsize)
    return Problem(f"B {B}, S {S:,}, H {H}/{K}, D {D}", [q, k, v], plain, tools, passes)


# ---------------------------------------------------------------- row by row


def _rms_norm(where: Where, shape: Shape) -> Problem:
    N, C = shape
    inputs = [where.normal(N, C), where.normal(C, seed=1)]
    plain = partial(rms_norm.rms_norm_reference, eps=1e-5)
    tools: Tools = {"ours": partial(rms_norm.rms_norm, impl=where.impl), **peers.rms_norm(where, plain)}
    return Problem(f"N {N:,}, C {C:,}", inputs, plain, tools, rms_norm.cost(N, C, where.dtype.itemsize))


def _add_rms_norm(where: Where, shape: Shape) -> Problem:
    N, C = shape
    inputs = [where.normal(N, C), where.normal(N, C, seed=2), where.normal(C, seed=1)]
    plain = partial(rms_norm.add_rms_norm_reference, eps=1e-5)
    tools: Tools = {"ours": partial(rms_norm.add_rms_norm, impl=where.impl), **peers.add_rms_norm(where, plain)}
    return Problem(f"N {N:,}, C {C:,}", inputs, plain, tools, rms_norm.cost(N, C, where.dtype.itemsize, add=True))


def _layer_norm(where: Where, shape: Shape) -> Problem:
    N, C = shape
    inputs = [where.normal(N, C), where.normal(C, seed=1), where.normal(C, seed=2)]
    plain = partial(layer_norm.layer_norm_reference, eps=1e-5)
    tools: Tools = {"ours": partial(layer_norm.layer_norm, impl=where.impl), **peers.layer_norm(where, plain)}
    # PyTorch's own adds the rows of dg and db one after the other.
    return Problem(f"N {N:,}, C {C:,}", inputs, plain, tools, layer_norm.cost(N, C, where.dtype.itemsize), floor=1e-4)


def _rope(where: Where, shape: Shape) -> Problem:
    B, T, H, D = shape
    tables = [t.to(where.device) for t in rope.rope_table(rope.frequencies(D, 1e4), T, where.dtype)]
    turn = lambda f: lambda x: f(x, *(t.to(x.dtype) for t in tables))  # noqa: E731
    plain = turn(rope.rope_reference)
    tools: Tools = {"ours": turn(partial(rope.rope, impl=where.impl)), **peers.plain_ones(where, plain)}
    passes = rope.cost(B * T, H, D, where.dtype.itemsize)
    return Problem(f"B {B}, T {T:,}, H {H}, D {D}", [where.normal(B, T, H, D)], plain, tools, passes)


def _swiglu(where: Where, shape: Shape) -> Problem:
    N, columns = shape
    inputs, plain = [where.normal(N, columns), where.normal(N, columns, seed=1)], swiglu.swiglu_reference
    tools: Tools = {"ours": partial(swiglu.swiglu, impl=where.impl), **peers.swiglu(where, plain)}
    return Problem(f"N {N:,}, F {columns:,}", inputs, plain, tools, swiglu.cost(N, columns, where.dtype.itemsize))


def _geglu(where: Where, shape: Shape) -> Problem:
    N, columns = shape
    inputs, plain = [where.normal(N, columns), where.normal(N, columns, seed=1)], swiglu.geglu_reference
    tools: Tools = {"ours": partial(swiglu.geglu, impl=where.impl), **peers.geglu(where, plain)}
    return Problem(f"N {N:,}, F {columns:,}", inputs, plain, tools, swiglu.cost(N, columns, where.dtype.itemsize))


# ---------------------------------------------------------------- loss


def _cross_entropy(where: Where, shape: Shape) -> Problem:
    N, V = shape
    labels = where.labels(N, V)
    plain = lambda z: _wide(cross_entropy.cross_entropy_reference(z, labels).sum(), z)  # noqa: E731
    ours = lambda z: cross_entropy.cross_entropy(z, labels, impl=where.impl)  # noqa: E731
    tools: Tools = {"ours": ours, **peers.cross_entropy(where, labels)}
    passes = cross_entropy.cost(N, V, where.dtype.itemsize)
    return Problem(f"N {N:,}, V {V:,}", [where.normal(N, V)], plain, tools, passes, floor=_of_sum(N, where))


def _linear_cross_entropy(where: Where, shape: Shape) -> Problem:
    N, C, V = shape
    labels = where.labels(N, V)
    inputs = [where.normal(N, C), where.normal(V, C, seed=1, scale=C**-0.5)]
    plain = lambda x, w: _wide(  # noqa: E731
        linear_cross_entropy.linear_cross_entropy_reference(x, w, labels), x
    )
    ours = lambda x, w: linear_cross_entropy.linear_cross_entropy(x, w, labels, impl=where.impl)[0]  # noqa: E731
    tools: Tools = {"ours": ours, **peers.linear_cross_entropy(where, labels)}
    passes = {"forward and backward": (0, 6 * N * C * V)}  # the three products; other bytes are ours to avoid
    name = f"N {N:,}, C {C:,}, V {V:,}"
    floor, logits = _of_sum(N, where), N * V * where.dtype.itemsize
    return Problem(name, inputs, plain, tools, passes, floor=floor, logits=logits)


def _wide(loss: Tensor, x: Tensor) -> Tensor:
    return loss.to(torch.promote_types(x.dtype, torch.float32))


def _of_sum(N: int, where: Where) -> float:
    """A sum of N losses near 12: their rounding, where the formula in the same dtype may be right by luck."""
    return N * 12 * (2**-22 if where.dtype == torch.float32 else 2**-9)


# ---------------------------------------------------------------- optimizers

TENSOR = 2**22  # weights of one tensor in the benchmark, a layer's matrix of 2048 × 2048
STEP: Any = {"step": 3, "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def _pieces(where: Where, weights: int) -> list[int]:
    return [min(TENSOR, weights - start) for start in range(0, weights, TENSOR)]


def _adamw(where: Where, shape: Shape) -> Problem:
    (weights,) = shape
    sizes = _pieces(where, weights)
    lists = [[where.normal(n, seed=7 * j + i, learned=False) for i, n in enumerate(sizes)] for j in range(4)]
    lists[3] = [x.abs() for x in lists[3]]

    def plain(*lists: list[Tensor]) -> None:
        for row in zip(*lists, strict=True):
            adamw.adamw_step_reference(*row, **STEP)

    tools: Tools = {"ours": partial(adamw.adamw_step, impl=where.impl, **STEP), **peers.adamw(where, plain)}
    passes = {"step": adamw.cost(weights, where.dtype.itemsize)["step"]}
    return Problem(f"{weights:,} weights in {len(sizes)} tensors", lists, plain, tools, passes, steps=1)


def _adamw_8bit(where: Where, shape: Shape) -> Problem:
    (weights,) = shape
    sizes = _pieces(where, weights)
    p, g = ([where.normal(n, seed=7 * j + i, learned=False) for i, n in enumerate(sizes)] for j in range(2))
    states = [adamw_8bit.empty_state(x) for x in p]
    m, ms, v, vs = ([s[key] for s in states] for key in ("m", "m_scale", "v", "v_scale"))

    def step(one: Callable[..., None], *lists: list[Tensor]) -> None:
        for p, g, m, ms, v, vs in zip(*lists, strict=True):
            one(p, g, {"m": m, "m_scale": ms, "v": v, "v_scale": vs}, **{**STEP, "step": 1})

    plain = partial(step, adamw_8bit.adamw_8bit_step_reference)
    ours = partial(step, partial(adamw_8bit.adamw_8bit_step, impl=where.impl))
    tools: Tools = {"ours": ours, **peers.adamw_8bit(where, plain)}
    name = f"{weights:,} weights in {len(sizes)} tensors"
    passes = adamw_8bit.cost(weights, where.dtype.itemsize)
    return Problem(name, [p, g, m, ms, v, vs], plain, tools, passes, steps=2)


def _muon(where: Where, shape: Shape) -> Problem:
    N, R, C = shape
    plain = muon.newton_schulz_reference
    ours = lambda x: muon.newton_schulz(x, dtype=x.dtype, impl=where.impl)  # noqa: E731
    tools: Tools = {"ours": ours, **peers.plain_ones(where, plain, "plain Newton–Schulz")}
    inputs, passes = [where.normal(N, R, C, learned=False)], muon.cost(N, R, C, where.dtype.itemsize)
    # Five turns carry a rounding on: the formula in the same dtype does not bound another order of its sums.
    floor = 1e-4 if where.dtype == torch.float32 else 0.03
    return Problem(f"{N} of {R:,} × {C:,}", inputs, plain, tools, passes, floor=floor, near=4.0)


def _lora(where: Where, shape: Shape) -> Problem:
    M, C, N, r = shape
    w = where.normal(N, C, seed=1, scale=C**-0.5, learned=False)
    inputs = [where.normal(M, C), where.normal(r, C, seed=2, scale=C**-0.5), where.normal(N, r, seed=3)]
    plain = lambda x, a, b: lora.lora_linear_reference(x, w.to(x.dtype), a, b, 2.0)  # noqa: E731
    ours = lambda x, a, b: lora.lora_linear(x, w.to(x.dtype), a, b, scale=2.0, impl=where.impl)  # noqa: E731
    tools: Tools = {"ours": ours, **peers.plain_ones(where, plain, "torch eager (as peft)")}
    passes = lora.cost(M, C, N, r, where.dtype.itemsize)
    return Problem(f"M {M:,}, C {C:,}, N {N:,}, r {r}", inputs, plain, tools, passes)


# ---------------------------------------------------------------- all of them

TOKENS = 8192
KERNELS: dict[str, Kernel] = {
    "attention": Kernel(
        "B,T,H,D or B,T,H,K,D", _attention, True,
        card=[(4, 4096, 16, 128), (2, 8192, 16, 128), (1, 16384, 16, 128), (2, 8192, 32, 8, 128), (2, 8192, 32, 64)],
        cpu=(2, 256, 6, 2, 32), small=(1, 130, 4, 2, 128), function="f(q [B,T,H,D], k, v [B,T,K,D]) → [B,T,H,D]",
    ),
    "decode_attention": Kernel(
        "B,S,H,K,D", _decode, False, card=[(16, 8192, 32, 8, 128), (1, 32768, 32, 8, 128)], cpu=(4, 512, 6, 2, 32),
        small=(2, 140, 4, 2, 128), function="f(q [B,1,H,D], k, v [B,S,K,D]) → [B,1,H,D]",
    ),
    "rms_norm": Kernel(
        "N,C", _rms_norm, False, card=[(TOKENS, 4096), (TOKENS, 8192)], cpu=(4096, 192), small=(37, 4096),
        function="f(x [N,C], weight [C]) → [N,C]",
    ),
    "add_rms_norm": Kernel(
        "N,C", _add_rms_norm, False, card=[(TOKENS, 4096)], cpu=(4096, 192), small=(37, 4096),
        function="f(x [N,C], residual [N,C], weight [C]) → norm, sum",
    ),
    "layer_norm": Kernel(
        "N,C", _layer_norm, False, card=[(TOKENS, 4096)], cpu=(4096, 192), small=(37, 4096),
        function="f(x [N,C], weight [C], bias [C]) → [N,C]",
    ),
    "rope": Kernel(
        "B,T,H,D", _rope, False, card=[(1, TOKENS, 32, 128)], cpu=(16, 256, 6, 32), small=(2, 5, 32, 128),
        function="f(x [B,T,H,D]) → [B,T,H,D], base 10,000",
    ),
    "swiglu": Kernel(
        "N,F", _swiglu, False, card=[(TOKENS, 14336)], cpu=(4096, 512), small=(5, 14336),
        function="f(gate [N,F], up [N,F]) → [N,F]",
    ),
    "geglu": Kernel(
        "N,F", _geglu, False, card=[(TOKENS, 14336)], cpu=(4096, 512), small=(5, 14336),
        function="f(gate [N,F], up [N,F]) → [N,F], gelu by tanh",
    ),
    "cross_entropy": Kernel(
        "N,V", _cross_entropy, False, card=[(4096, 128256)], cpu=(512, 4096), small=(5, 9000),
        function="f(logits [N,V]) → the sum of the losses",
    ),
    "linear_cross_entropy": Kernel(
        "N,C,V", _linear_cross_entropy, True, card=[(TOKENS, 4096, 32768), (TOKENS, 4096, 128256)],
        cpu=(1024, 192, 4096), small=(140, 32, 4200), function="f(x [N,C], weight [V,C]) → the sum of the losses",
    ),
    "adamw": Kernel(
        "N", _adamw, False, card=[(2**28,)], cpu=(2**20,), small=(5000,),
        function="f(params, grads, m, v), lists of tensors, in place: step 3, lr 1e-3, betas .9 .95, decay .1",
        whole=True,
    ),
    "adamw_8bit": Kernel(
        "N", _adamw_8bit, False, card=[(2**28,)], cpu=(2**18,), small=(5000,),
        function="f(params, grads, m, m_scale, v, v_scale), lists of tensors, in place: step 1, the rest as adamw",
        whole=True,
    ),
    "muon": Kernel(
        "N,R,C", _muon, True, card=[(1, 4096, 4096), (8, 1024, 4096)], cpu=(4, 192, 512), small=(2, 140, 96),
        function="f(updates [N,R,C]) → [N,R,C], five turns",
    ),
    "lora": Kernel(
        "M,C,N,r", _lora, True, card=[(TOKENS, 4096, 4096, 16)], cpu=(1024, 192, 192, 8), small=(140, 96, 150, 16),
        function="f(x [M,C], a [r,C], b [N,r]) → [M,N], scale 2",
    ),
}  # fmt: skip
