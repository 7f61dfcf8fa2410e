"""Kernels compiled for cards that are not there, and what the compiler says about them.

Whether a kernel is fast shows on a card only; much of whether it can be fast shows before: does it compile for the
chip, does it use the tensor cores, do its blocks fit in the chip's shared memory, do its variables fit in registers or
spill to memory, does a new length compile it anew.

A launch in Triton asks a driver which card is there, compiles for it, loads the binary and starts it. `PretendCard` is
a driver that answers for any chip, takes the binary's resources down and starts nothing: so what is compiled is what a
real launch by the real code would compile, settings included, down to the last stride. The outputs are garbage; only
their shapes are right.

Registers, stack and spills are read from the binary by cuobjdump, instructions from the PTX; both come with Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.kernels import launch as launching
from luthier.kernels.launch import triton

__all__ = ["CHIPS", "KERNELS", "Compiled", "compiled_for", "for_other_lengths", "pretend", "report"]

KERNELS = (
    "attention",
    "decode_attention",
    "rms_norm",
    "layer_norm",
    "rope",
    "swiglu",
    "cross_entropy",
    "linear_cross_entropy",
    "adamw",
    "adamw_8bit",
    "muon",
    "lora",
)

# What a block may have of shared memory, bytes, and a card of each kind (NVIDIA, CUDA C++ Programming Guide, table of
# technical specifications by compute capability).
CHIPS = {
    80: ("A100", 163 * 1024),
    86: ("RTX 3090", 99 * 1024),
    89: ("RTX 4090", 99 * 1024),
    90: ("H100, H200", 227 * 1024),
    100: ("B200", 227 * 1024),
    120: ("RTX 5090", 99 * 1024),
}
MATRIX = {"wgmma.mma_async": "wgmma", "mma.sync": "mma", "tcgen05.mma": "tcgen05"}  # PTX for products on tensor cores


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one chip."""

    name: str
    arch: int
    settings: str
    """The constants that it was compiled for."""
    shared: int
    """Bytes of shared memory a block."""
    registers: int
    """A thread's; 255 at most."""
    stack: int
    """Bytes a thread keeps in memory for want of registers, or for arrays: spills."""
    threads: int
    products: str
    """The kinds of tensor-core instructions in it; empty if none."""
    widest: int
    """Bytes that a thread reads or writes of the card's memory at once, at best: 16 where nothing hinders it."""


class PretendCard:
    """Triton's driver for a chip that is not there. Its device number is its compute capability."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.launched: dict[int, Any] = {}
        self.utils = self

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return import_module("triton.backends.compiler").GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": CHIPS[self.arch][1]}

    def load_binary(self, *_: Any) -> tuple[Any, Any, int, int, int]:
        """Module, function, registers, spills and the threads a block may have."""
        return object(), object(), 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What starts a kernel: here it notes that it was called."""

        def start(*_: Any) -> None:
            for kernel in source.fn.device_caches[self.arch][0].values():
                if kernel.metadata is metadata:
                    self.launched[id(kernel)] = kernel

        return start


@cache
def _card(arch: int) -> PretendCard:
    """One card for each chip: a kernel that is compiled keeps the launcher that its first card gave it."""
    return PretendCard(arch)


@contextmanager
def pretend(arch: int) -> Iterator[PretendCard]:
    """Launches of CPU tensors inside go to a pretended card, also those that impl="triton" asks for."""
    driver, card = triton.runtime.driver, _card(arch)
    before = driver._active
    card.launched.clear()
    driver.set_active(card)
    launching.pretended = True
    try:
        yield card
    finally:
        launching.pretended = False
        driver._active = before


def compiled_for(arch: int, work: Callable[[], Any]) -> list[Compiled]:
    """Every kernel that `work` launches, compiled for a chip, each set of constants once, in order of launch.

    Raises triton.runtime.errors.OutOfResources where a block needs more shared memory than the chip has.
    """
    with pretend(arch) as card:
        work()
    return [_read(kernel, arch) for kernel in card.launched.values()]


def _read(kernel: Any, arch: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}
    names = kernel.src.fn.arg_names
    constants = {names[place[0]]: value for place, value in kernel.src.constants.items() if len(place) == 1}
    return Compiled(
        name=kernel.src.fn.__name__.lstrip("_"),
        arch=arch,
        settings=", ".join(f"{k}={v}" for k, v in constants.items() if k.isupper() and v is not None),
        shared=kernel.metadata.shared,
        registers=used["REG"],
        stack=used["STACK"] + used["LOCAL"],
        threads=kernel.metadata.num_warps * 32,
        products=" ".join(word for sign, word in MATRIX.items() if sign in kernel.asm["ptx"]),
        widest=_widest(kernel.asm["ptx"]),
    )


def _widest(ptx: str) -> int:
    plain = re.findall(r"\b(?:ld|st)\.global(?:\.[a-z_:0-9]+)*?(?:\.v([248]))?\.[bfus](\d+)\b", ptx)
    ahead = re.findall(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?, 0x([0-9a-f]+)", ptx)
    return max([int(n or 1) * int(bits) // 8 for n, bits in plain] + [int(n, 16) for n in ahead], default=0)


def report(name: str, arch: int, tokens: int = 512, **options: Any) -> list[Compiled]:
    """What a kernel file's own `trial` compiles to."""
    module = import_module(f"luthier.kernels.{name}")
    return compiled_for(arch, lambda: module.trial(tokens, **options))


def for_other_lengths(name: str, arch: int, lengths: Sequence[int] = (512, 1, 2, 17, 160, 333)) -> list[Compiled]:
    """What `trial` compiles to when it is called with one length after another: the same as for one, if no length is
    compiled anew."""
    module = import_module(f"luthier.kernels.{name}")
    return compiled_for(arch, lambda: [module.trial(length) for length in lengths])
