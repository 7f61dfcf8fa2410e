"""Where a kernel runs: on the card, in Triton's interpreter, or not at all.

Every kernel of this folder exists twice: as a Triton program for NVIDIA cards, and as a few lines of PyTorch that say
the same. Public functions choose by `impl`:

    "auto"     Triton for tensors on an NVIDIA card of compute capability 8.0 or more, PyTorch everywhere else
    "triton"   Triton, or an error that says why not and what "auto" would do
    "torch"    PyTorch

Triton is optional: where it cannot be imported (a Mac, PyTorch's CPU build) `jit` leaves a kernel as it is, a function
that nobody calls. With TRITON_INTERPRET=1 in the environment before Triton is imported, kernels run on CPU tensors,
one program after the other, in NumPy: slow, and right to the last rule about masks and shapes. The tests do that.

**Lengths.** A launch compiles anew for every new value of a `tl.constexpr`, and for integers that are 1 or divisible by
16. So numbers that change from batch to batch (tokens, rows) are named in `do_not_specialize`: one compilation serves
all lengths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

__all__ = [
    "INTERPRETED",
    "Impl",
    "LaunchError",
    "arch",
    "check_floats",
    "check_together",
    "constant",
    "dot",
    "jit",
    "launch",
    "multiprocessors",
    "narrow",
    "power",
    "tl",
    "use_triton",
]


def _optional(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        return None


triton: Any = _optional("triton")
if TYPE_CHECKING:

    class tl(Any):
        """To a type checker, which may find no Triton, everything in it is allowed."""

        constexpr = Any

else:
    tl = _optional("triton.language")

Impl = Literal["auto", "triton", "torch"]
INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"
OLDEST = 80  # Ampere: the first with bf16 and asynchronous copies
pretended = False  # whether proof.py stands in for a card: then tensors of the CPU are taken for a card's


class LaunchError(ValueError):
    """A kernel was asked for where it cannot run, or on numbers that it cannot take."""


def jit(kernel: Any = None, *, lengths: tuple[str, ...] = ()) -> Any:
    """Triton's decorator; arguments named in `lengths` may change without a new compilation."""
    if kernel is None:
        return lambda kernel: jit(kernel, lengths=lengths)
    return kernel if triton is None else triton.jit(kernel, do_not_specialize=list(lengths))


def constant(value: Any) -> Any:
    """A global number that kernels may read."""
    return value if triton is None else triton.language.constexpr(value)


WIDE_DOT = constant(INTERPRETED)


@jit
def dot(a, b):
    """a · b in float32 on tensor cores: fp16 and bf16 as they are, fp32 as three TF32 products, about as exact as fp32.

    The interpreter's product of bf16 is wrong, so there it is taken in float32.
    """
    if WIDE_DOT:
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        return tl.dot(a, b, input_precision="tf32x3")


@jit
def narrow(x, dtype: tl.constexpr):
    """float32 x in another dtype, to the nearest. The interpreter cuts bf16 off, so there it is rounded by its bits."""
    if WIDE_DOT and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(dtype)


def use_triton(name: str, impl: str, x: Tensor) -> bool:
    """Whether `impl` means Triton for x. Raises LaunchError for an unknown impl, for "triton" where it cannot be."""
    if impl not in ("auto", "triton", "torch"):
        raise LaunchError(f"{name}: impl is {impl!r}; it may be 'auto', 'triton' or 'torch'")
    if impl == "torch" or (impl == "auto" and not x.is_cuda):
        return False
    if impl == "triton" and pretended:
        return True
    obstacle = _obstacle(x.device) if x.is_cuda or INTERPRETED else f"the tensor is on {x.device.type!r}"
    if impl == "triton" and obstacle:
        raise LaunchError(f"{name}: impl='triton' cannot run here: {obstacle}. impl='auto' would take PyTorch")
    if obstacle:
        _say(obstacle)
    return not obstacle


@cache
def _say(obstacle: str) -> None:
    """Once a reason: a card that the kernels cannot use is never passed over in silence."""
    logging.getLogger("luthier").warning("kernels: %s; PyTorch does the work", obstacle)


def check_together(name: str, **tensors: Tensor | None) -> None:
    """What every function here can take, by Triton or by PyTorch: floating-point numbers on one device."""
    first, device = "", None
    for key, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise LaunchError(f"{name}: {key} is {tensor.dtype}; it must be a floating-point tensor")
        if device is None:
            first, device = key, tensor.device
        elif tensor.device != device:
            raise LaunchError(f"{name}: {key} is on {tensor.device}, {first} is on {device}; move one to the other")


def check_floats(name: str, **tensors: Tensor) -> None:
    """What every Triton kernel here can take: float32, float16 or bfloat16, and all of it on one device."""
    check_together(name, **tensors)
    for key, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise LaunchError(f"{name}: {key} is {tensor.dtype}; the kernel takes float32, float16 and bfloat16")


@cache
def _obstacle(device: torch.device) -> str:
    """Why Triton cannot serve a device; empty if it can."""
    if triton is None:
        return "Triton is not installed (pip install triton, on Linux)"
    if INTERPRETED:
        return ""
    if torch.version.hip is not None:
        return "these kernels were never tried on AMD cards"
    major, minor = torch.cuda.get_device_capability(device)
    found = f"the card has compute capability {major}.{minor}, the kernels need {OLDEST // 10}.0"
    return "" if 10 * major + minor >= OLDEST else found


def arch() -> int:
    """The compute capability that kernels are compiled for, as 90 for 9.0."""
    return OLDEST if INTERPRETED else int(triton.runtime.driver.active.get_current_target().arch)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def multiprocessors(x: Tensor) -> int:
    """How many multiprocessors the card of x has; 4 where there is no card, so that loops over work are walked."""
    return _multiprocessors(x.device)


def power(n: int) -> int:
    """The least power of two that is n or more: the sizes that Triton's blocks may have."""
    return 1 << max(n - 1, 0).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **settings: Any) -> None:
    """Run a kernel on the card where its first tensor lies; a grid without programs is no launch."""
    if 0 in grid:
        return
    device = next(a.device for a in args if isinstance(a, Tensor))
    run: Callable[..., Any] = kernel[grid]
    if device.type == "cuda":
        with torch.cuda.device(device):
            run(*args, **settings)
    else:
        run(*args, **settings)
