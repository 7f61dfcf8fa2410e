"""A kernel as the compiler and the formula see it: what it takes on each chip, and what bounds its speed.

`luthier show kernel:attention` compiles the kernel for cards that are not there and prints, for each chip, what a
program of it takes: shared memory, registers, memory for what did not fit in registers (spills), kinds of tensor-core
instructions. Below stands the roofline (Williams et al. 2009): a card reads so many bytes and does so many operations
in a second; the kernel needs so many of each by its own formula; it can take no less time than the longer of the two.
"""

from __future__ import annotations

from importlib import import_module, util
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["PREFIX", "show_kernel"]

PREFIX = "kernel:"
# Bytes and bf16 tensor-core operations a second of a card (NVIDIA's data sheets, without sparsity).
PEAKS = {
    "A100 80GB": (2.039e12, 312e12),
    "RTX 4090": (1.008e12, 165e12),
    "H100 SXM": (3.35e12, 989e12),
    "H200": (4.8e12, 989e12),
    "B200": (8.0e12, 2250e12),
}
ITEMSIZE = 2  # bf16


def show_kernel(name: str) -> None:
    """Print the report of a kernel, `kernel:attention` or `attention`, to stdout. Raises InputError for no kernel."""
    from rich.console import Console

    from luthier.kernels.proof import KERNELS

    name = name.removeprefix(PREFIX)
    if name not in KERNELS:
        raise InputError(f"there is no kernel {name!r}\nThere are: {', '.join(KERNELS)}")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    module = import_module(f"luthier.kernels.{name}")
    _say(console, f"kernels/{name}.py: {(module.__doc__ or '').strip().splitlines()[0]}\n")
    if util.find_spec("triton") is None:
        _say(console, "Triton is not installed, so nothing was compiled (pip install triton, on Linux).")
    else:
        _resources(console, name)
    _roofline(console, module)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _resources(console: Console, name: str) -> None:
    """What each kernel of the file takes on each chip."""
    from rich.table import Table
    from rich.text import Text

    from luthier.kernels.proof import CHIPS, report

    columns = ("kernel", "chip", "threads", "shared memory", "of", "registers", "spilled bytes", "at once", "products")
    table = Table(*columns, box=None, padding=(0, 1), header_style="bold")
    settings: dict[str, str] = {}
    for arch, (card, most) in CHIPS.items():
        for kernel in report(name, arch):
            chip = Text(f"sm_{arch} ({card})")
            numbers = (kernel.threads, kernel.shared, most, kernel.registers, kernel.stack, kernel.widest)
            table.add_row(kernel.name, chip, *(f"{n:,}" for n in numbers), kernel.products or "none")
            settings[f"{kernel.name} on sm_{arch}"] = kernel.settings
    console.print(table)
    _say(
        console,
        "\nA thread has 255 registers at most, a multiprocessor 65,536 for all its threads. Spilled bytes lie in "
        "memory, a thread's own. At once: bytes of the card's memory that a thread reads or writes, at best. Products: "
        "the tensor cores' instructions (mma, wgmma on sm_90, tcgen05 on sm_100).\n",
    )
    for key, value in settings.items():
        if key.endswith("sm_90"):
            _say(console, f"compiled with  {key}: {value}")


def _roofline(console: Console, module: Any) -> None:
    """Bytes and operations by the kernel's own formula, and the least time on each card."""
    from rich.table import Table

    size = ", ".join(f"{key} {value:,}" for key, value in module.EXAMPLE.items())
    _say(console, f"\nBy its formula in bf16, with {size}:\n")
    columns = ("pass", "bytes", "operations", "per byte", *(f"{card}, ms" for card in PEAKS))
    table = Table(*columns, box=None, padding=(0, 1), header_style="bold")
    for name, (moved, operations) in module.cost(**module.EXAMPLE, itemsize=ITEMSIZE).items():
        least = []
        for bandwidth, peak in PEAKS.values():
            memory, arithmetic = 1e3 * moved / bandwidth, 1e3 * operations / peak
            least.append(f"{max(memory, arithmetic):.3f} {'M' if memory > arithmetic else 'A'}")
        table.add_row(name, f"{moved:,}", f"{operations:,}", f"{operations / moved:.1f}", *least)
    console.print(table)
    _say(
        console,
        "\nThe least time a card can take, by the data sheet's peaks: M where memory bounds it, A where arithmetic on "
        "the tensor cores does. The share of it that a kernel reaches: luthier bench kernels.",
    )
