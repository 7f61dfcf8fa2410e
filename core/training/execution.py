"""How a step is computed: number format, recomputation, compiling, device; and how fast that is.

    fp32        weights, products and optimizer in float32
    bf16        products in bfloat16 (8 bits of mantissa, the range of float32), weights and sums in float32: autocast
    bf16-pure   weights in bfloat16 too: half the memory. Near 1 its neighbours are 2⁻⁷ apart and a step of 10⁻³ would
                be rounded away, so weights are rounded up or down by chance (kernels/adamw.py)
    fp16        products in float16 (11 bits, but nothing below 6·10⁻⁸): the loss is multiplied by a scale so that small
                gradients survive, and the gradients divided by it again (Micikevicius et al. 2018, arXiv:1710.03740)

**The loss scale** doubles after 2,000 good steps and halves when a gradient overflows; that step is not made.

**Model FLOPs utilisation** (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) is the work the model needs, without
what is recomputed, over the most the machine can do. The most is measured here, by a product of two square matrices.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch
from torch import Tensor, nn

from luthier.core.console import say
from luthier.core.training.loop_config import LoopConfig, Precision
from luthier.kernels.processor import ways
from luthier.kernels.product import product

__all__ = ["autocast", "choices", "device_of", "matmul_speed", "memory_used", "prepare_model", "rescale", "unscale"]

FIRST_SCALE, GROWS_AFTER = 2.0**16, 2000
GAIN = 1.2  # of a product by all cores over one: a step gains less
LONG_RUN = 500  # steps from which compiling on a card pays for itself
MEMORY, OWN_SIZE, OWN_GROUPS = Path("/proc/meminfo"), Path("/proc/self/statm"), Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
# Of a control group, by version: its most memory, what it holds, and the files among it that Linux may forget
GROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

each: Any = torch  # the `_foreach_` operations are public in torch's documentation, but not to type checkers


def use_machine(threads: int) -> None:
    """Threads as asked for (0: OMP_NUM_THREADS, or all cores if they beat one), and freed memory kept."""
    from luthier.core.training.allocator import keep_freed_memory

    keep_freed_memory()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(threads or (int(asked) if asked.isdigit() and asked != "0" else faster_threads()))


@cache
def faster_threads() -> int:
    """All cores this process may use, or one where a product is hardly faster with all: where another program holds a
    core, the thread on it keeps the others waiting. Looked at once in a process, and said."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1:
        return 1
    speeds = {}
    for count in (1, cores):
        torch.set_num_threads(count)
        speeds[count] = matmul_speed(torch.device("cpu"), products=9)
    best = cores if speeds[cores] >= GAIN * speeds[1] else 1
    others = "" if best > 1 else ": other programs compute here; --threads says otherwise"
    say(
        f"  threads      {best}: a product takes {speeds[cores] / 1e9:,.0f} GFLOP/s with {cores}, "
        f"{speeds[1] / 1e9:,.0f} with one{others}"
    )
    return best


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first weight lies; of a model without weights (on the device "meta"), where a run puts them."""
    device = next(model.parameters()).device
    if device.type != "meta":
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_model(model: nn.Module, config: LoopConfig, made: dict[str, Any]) -> None:
    """Weights in their precision, layers that recompute or are compiled, by the choices `made`."""
    if config.precision == "bf16-pure":
        model.to(torch.bfloat16)
    if config.recompute:
        cast(Any, model).recompute = True
    for layer in cast(Iterable[nn.Module], getattr(model, "layers", ())):
        if made["compile"] == "on":
            layer.compile()


def choices(model: nn.Module, config: LoopConfig, steps: int) -> dict[str, Any]:
    """How this run computes: what a checkpoint remembers and a resumed run must not change in silence."""
    device = device_of(model)
    compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda" and steps >= LONG_RUN)
    if compiled and device.type == "cpu" and not has_compiler():
        say(
            "  compile      there is no C++ compiler (g++, on macOS clang++, or what CXX names): layers run as they are"
        )
        compiled = False
    return {
        "threads": torch.get_num_threads(),
        "compile": "on" if compiled else "off",
        "kernels": kernels_of(device) if device.type == "cuda" else ways(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "torch": torch.__version__,
        "luthier": _version(),
    }


def _version() -> str:
    try:
        return metadata.version("luthier")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "a checkout"


def has_compiler() -> bool:
    """Whether torch.compile finds what it translates into: the C++ compiler that it looks for."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")) is not None


def kernels_of(device: torch.device) -> str:
    """Which implementation the kernels take on a device."""
    if device.type != "cuda":
        return "torch"
    try:
        import triton  # pyright: ignore[reportMissingImports]
    except ImportError:
        return "torch"
    return f"triton {triton.__version__} on {torch.cuda.get_device_name(device)}"


def kernels_said(device: torch.device) -> str:
    """The same in words, with the cost of a fallback."""
    found = kernels_of(device)
    if found == "torch" and device.type == "cuda":
        return "PyTorch's (Triton is not installed: slower, and attention needs more memory; pip install triton)"
    return ways() if found == "torch" else found


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which a loss is computed."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "fp16":
        return torch.autocast(device.type, torch.float16)
    return contextlib.nullcontext()


def unscale(weights: list[nn.Parameter], scale: float) -> None:
    """Divide the gradients by the loss scale."""
    grads = [p.grad for p in weights if p.grad is not None]
    if scale != 1 and grads:
        each._foreach_mul_(grads, 1 / scale)


def rescale(scale: float, good: int, finite: bool) -> tuple[float, int]:
    """The loss scale of the next step and how many good steps it has seen."""
    if not finite:
        return max(scale / 2, 1.0), 0
    return (scale * 2, 0) if good + 1 >= GROWS_AFTER else (scale, good + 1)


# ---------------------------------------------------------------- how fast, how much


def matmul_speed(device: torch.device, precision: Precision = "fp32", products: int = 3) -> float:
    """The most this machine can do, in FLOP/s: the best of so many products of square matrices, by the way that layers
    take here. The first is not counted: it may compile."""
    cuda = device.type == "cuda"
    size = 8192 if cuda else 768
    kind = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    a = torch.ones(size, size, device=device, dtype=kind)
    best = float("inf")
    product(a, a)
    for _ in range(products):
        start = time.perf_counter()
        b: Tensor = product(a, a)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        del b
    return 2 * size**3 / best


def memory_used(device: torch.device) -> int:
    """The most memory that this process has held: of the card, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_free(device: torch.device) -> int:
    """Memory that a run may take here, in bytes; 0 where nobody says. What Linux keeps of files it has read is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return max(1, min((_free_here(), *_free_in_groups(), *_free_by_limits())))
    except (ValueError, OSError):
        return 0


def _free_here() -> int:
    """Of the machine."""
    if not MEMORY.is_file():
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _number(MEMORY, "MemAvailable:") * 1024


def _free_in_groups() -> Iterator[int]:
    """Of what a container may take: of each control group with a limit that this process is in, and those above it."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else ():
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (GROUPS / "memory", GROUP_FILES[1]) if controllers else (GROUPS, GROUP_FILES[2])
        # Inside a container its own group is often what is mounted, and the name is one that only the host can follow
        for group in (own, *map(str, PurePosixPath(own).parents)):
            most, used = (root / group.lstrip("/") / name for name in names[:2])
            if most.is_file() and (limit := most.read_text().strip()) != "max":
                yield int(limit) - int(used.read_text()) + _number(used.with_name("memory.stat"), names[2])


def _free_by_limits() -> Iterator[int]:
    """Of what the process may take by itself (`ulimit -v` and `-d`), where Linux says what it has taken."""
    import resource

    pages = OWN_SIZE.read_text().split() if OWN_SIZE.is_file() else []
    for kind, taken in ((resource.RLIMIT_AS, pages[:1]), (resource.RLIMIT_DATA, pages[5:6])):
        limit = resource.getrlimit(kind)[0]
        if taken and limit != resource.RLIM_INFINITY:
            yield limit - int(taken[0]) * resource.getpagesize()


def _number(file: Path, name: str) -> int:
    """The number beside `name`, in a file with a name and a number a line."""
    return int(next((line.split()[1] for line in file.read_text().splitlines() if line.split()[:1] == [name]), ""))
