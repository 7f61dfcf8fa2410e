"""What a CPU does best, by its make: rules that were measured, so that nothing is timed at a user's start.

                                    AMD with AVX-512            Intel and others
    products of float32             oneDNN (product.py)         in three parts of bfloat16 (split_loops.py) with AMX,
                                                                Numba and one or two threads; else MKL, with AVX-512
                                                                oneDNN where a bias is added
    causal attention of float32     in bands of queries         in tiles of registers (tiled_attention.py) with AVX-512,
                                    (causal_attention.py)       Numba and one or two threads; else PyTorch's fused one
    row-wise operations             one pass over memory (row_loops.py) where Numba is installed and one or two threads
                                    compute; with more of them PyTorch's several passes

GFLOP/s of one core, y = x Wᵀ (4096 rows, 256 → 688): AMD EPYC (Zen 4) MKL 93, oneDNN 105; Intel Xeon (Sapphire Rapids)
MKL 190, oneDNN 153, in parts 270. Attention forward and backward, ms (16 × 256 tokens, H 8, K 4, D 32; 2 × 512, D 64):
AMD bands 48, 32, fused 56, 50; Intel tiles 19, 14, bands 47, 29, fused 31, 25. More than two threads were not measured:
they are PyTorch's.

torch.compile calls the same loops and adds nothing to them (a step of 27 M parameters 1.12 s, without it 1.10), so
that on a CPU it is off unless asked for.

What a machine follows is one line, `ways()`: training prints it at the start, stores it in its checkpoints and does not
go on where it is another, because sums would be rounded otherwise.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.kernels.openmp import in_shares, openmp

__all__ = [
    "amd_avx512",
    "closed_loops",
    "compiled",
    "copied",
    "few_threads",
    "in_one_pass",
    "intel_avx512",
    "row_loops",
    "rows",
    "split_loops",
    "tiled_loops",
    "together",
    "ways",
]

FEWEST = 2**15  # numbers; with fewer the call costs more than the passes
MOST_THREADS = 2
FEWEST_TO_SHARE = 2**20  # numbers; with fewer a second thread costs more than it saves
TOGETHER = 64  # rows of which row_loops.py makes one sum


def amd_avx512() -> bool:
    """Whether this is an AMD processor with AVX-512 under Linux."""
    return _avx512("AuthenticAMD")


def intel_avx512() -> bool:
    """Whether this is an Intel processor with AVX-512 under Linux."""
    return _avx512("GenuineIntel")


def few_threads() -> bool:
    """Whether so few threads compute that loops of one or two are the faster ones."""
    return torch.get_num_threads() <= MOST_THREADS


@cache
def _avx512(make: str) -> bool:
    """Whether this is a processor of that make with AVX-512 under Linux."""
    try:
        made = make in Path("/proc/cpuinfo").read_text()[:1000]
    except OSError:
        return False
    return made and torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def compiled(name: str) -> Any:
    """A module of compiled loops, or None without Numba, or without a folder where it may keep them."""
    try:
        return import_module(f"luthier.kernels.{name}")
    except (ImportError, RuntimeError):
        return None


def tiled_loops() -> Any:
    """The module of attention in tiles where this processor is to take it, otherwise None."""
    return compiled("tiled_loops") if intel_avx512() else None


@cache
def _amx() -> bool:
    """Whether the system lets this process use a unit for products of bfloat16."""
    able = intel_avx512() and "amx_bf16" in Path("/proc/cpuinfo").read_text() and hasattr(torch.cpu, "_init_amx")
    return able and torch.cpu._init_amx()


def split_loops() -> Any:
    """The module of products in parts where this processor can make them, otherwise None."""
    return compiled("split_loops") if _amx() else None


def _loops_there() -> bool:
    return compiled("row_loops") is not None


# What torch.compiler.assume_constant_result writes; calling it would load the compiler at import
for function in (amd_avx512, intel_avx512, few_threads, tiled_loops, split_loops, _loops_there):
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010


def row_loops(*tensors: Tensor) -> bool:
    """Whether row_loops.py takes these tensors: plain float32 on a CPU, as many numbers as pay, outside of
    torch.compile, which writes loops of its own, and torch.func."""
    return not torch.compiler.is_compiling() and closed_loops(*tensors)


def closed_loops(*tensors: Tensor) -> bool:
    """The same where torch.compile may be at work, for what has operations of its own (torch.library)."""
    if tensors[0].numel() < FEWEST or not few_threads():
        return False
    for x in tensors:
        if type(x) not in (Tensor, torch.nn.Parameter) or x.dtype != torch.float32 or x.device.type != "cpu":
            return False
    return _loops_there() and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active())


def rows(x: Tensor) -> Any:
    """A contiguous [..., C] as an array [N, C], as row_loops.py takes it."""
    return x.detach().view(-1, x.shape[-1]).numpy()


def copied(weight: Tensor) -> Any:
    """A weight as an array of its own: memory that NumPy has seen could not be freed by FSDP."""
    return weight.detach().clone(memory_format=torch.contiguous_format).numpy()


def together(rows: Any) -> int:
    """How many rows stay with one thread: all, where there is too little for two."""
    return TOGETHER if rows.size >= FEWEST_TO_SHARE else len(rows)


def in_one_pass(loop: str, whole: tuple[Any, ...], by_row: tuple[Any, ...], sums: int = 0) -> tuple[Tensor, ...]:
    """Run one of row_loops.py, if long enough on all threads: `whole` belongs to all rows, `by_row` has a line for each
    (None: not given). Returns sums over the rows, [C] each: of each thread's rows, then of the threads'."""
    run, rows = getattr(compiled("row_loops"), loop), by_row[0]
    shape = (torch.get_num_threads(), sums, rows.shape[-1] if sums else 0)
    parts = torch.zeros(shape, dtype=torch.float32, device="cpu")
    known = parts.numpy()

    def work(first: int, last: int, thread: int) -> None:
        run(*whole, *(None if x is None else x[first:last] for x in by_row), *known[thread])

    in_shares(len(rows), together(rows), work)
    return tuple(part.sum(0) for part in parts.unbind(1))


def ways() -> str:
    """What sums on this processor follow, in a line: vectors, products, attention, row-wise operations."""
    from luthier.kernels.product import onednn_is_faster

    products = "oneDNN" if onednn_is_faster() else "MKL" if torch.backends.mkl.is_available() else "PyTorch's"
    products += " (oneDNN with a bias)" if onednn_is_faster(bias=True) and not onednn_is_faster() else ""
    few = f"up to {MOST_THREADS} threads"
    shared = few if openmp() is not None else "one thread"
    products = f"AMX in three parts ({shared}), small ones by {products}" if split_loops() is not None else products
    attention = "in bands" if amd_avx512() else f"in tiles ({shared})" if tiled_loops() is not None else "fused"
    together = ", long ones on all" if openmp() is not None else ""
    by_row = f"in one pass ({few}{together})" if compiled("row_loops") is not None else "in PyTorch's passes"
    return f"{torch.backends.cpu.get_cpu_capability()}: products by {products}, attention {attention}, rows {by_row}"
