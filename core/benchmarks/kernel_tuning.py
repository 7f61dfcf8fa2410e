"""Find the best tiles for this card: every candidate through the gate, then timed; the best goes into its table.

What is tried are tile sizes, warps and stages round the kernel's own rule (`settings` in its file). A candidate that
does not compile, needs more shared memory than there is, or gives a wrong result is left out. A class whose best is not
faster than the rule by more than 1% gets no entry: the rule stays.

Each class is measured at one size; lengths are not in the class, see kernels/tables.py. Forward and backward of
attention are three launches with settings of their own, tuned one after the other, the others by their rule.

Over a hundred candidates have to be compiled, some seconds each. That needs no card, so child processes do it at once
on all cores, for the chip that is there; what they compile lies in Triton's cache when the card asks for it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from luthier.core.artifacts import write_json
from luthier.core.benchmarks import report
from luthier.core.benchmarks.kernel_cases import KERNELS, Problem, Shape, Where
from luthier.core.benchmarks.kernels import (
    DTYPES,
    calls_of,
    device_time,
    gate,
    machine,
    once,
    small_of,
    where_to_run,
)
from luthier.core.console import say
from luthier.core.errors import ConfigError
from luthier.kernels import tables
from luthier.kernels.launch import INTERPRETED
from luthier.kernels.proof import pretend

__all__ = ["CLASSES", "compile_one", "tune"]

Candidate = dict[str, int]
GAIN = 1.01  # what a candidate must be faster than the rule by


class Class(NamedTuple):
    """A class of shapes to tune: a kernel, its part as the table names it, a shape, what is timed and tried."""

    kernel: str
    part: str
    shape: Shape
    backward: bool
    tried: list[Candidate]


def _grid(**choices: Sequence[int]) -> list[Candidate]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def _attention(heads: int, D: int) -> list[Class]:
    shape = (2, 8192, heads, D)
    wide = [  # a warp for 16 rows: what a warpgroup of sm_90 takes in one instruction
        {"BM": BM, "num_warps": BM // 16, **rest}
        for BM in (64, 128)
        for rest in _grid(BN=(32, 64, 128), num_stages=(2, 3))
    ]
    keys = [{"BN": BN, **rest} for BN in (64, 128) for rest in _grid(BM=(32, 64), num_warps=(4, 8), num_stages=(1, 2))]
    queries = [{"BM": BM, **rest} for BM in (64, 128) for rest in _grid(BN=(32, 64), num_warps=(4, 8), num_stages=(2,))]
    return [
        Class("attention", "forward", shape, False, wide),
        Class("attention", "key", shape, True, keys),
        Class("attention", "query", shape, True, queries),
    ]


_SYMMETRIC = _grid(BM=(64, 128), BK=(32, 64), num_warps=(4, 8), num_stages=(3, 4))
_PRODUCT = _grid(BN=(128, 256), BK=(32, 64), num_warps=(4, 8), num_stages=(2, 3))
_SPLIT = _grid(BN=(32, 64, 128), num_warps=(4, 8), num_stages=(2, 3))

CLASSES: list[Class] = [
    *_attention(16, 128),
    Class("muon", "symmetric", (1, 4096, 4096), False, _SYMMETRIC),
    Class("lora", "product", (8192, 4096, 4096, 16), False, _PRODUCT),
    Class("decode_attention", "split", (16, 8192, 32, 8, 128), False, _SPLIT),
    *_attention(32, 64),
]


def tune(
    names: Sequence[str] = (), *, dtype: str = "", seconds: float = float("inf"), folder: Path | None = None
) -> int:
    """Measure the classes of the kernels that are named (all that have tables otherwise) and write the card's table."""
    where = where_to_run(dtype)
    card = "interpreter" if INTERPRETED and folder else machine().get("gpu", "")
    if not card:
        raise ConfigError(
            "--tune needs an NVIDIA card; here the PyTorch twins run, which have no tiles\n"
            "With TRITON_INTERPRET=1 and --tables FOLDER it runs in the interpreter, to be tried out"
        )
    with_tables = {c.kernel for c in CLASSES}
    wrong = [name for name in names if name not in with_tables]
    if wrong:
        raise ConfigError(
            f"{wrong[0]} has no table: its settings follow from its sizes; tables have {', '.join(sorted(with_tables))}"
        )
    file, clock = tables.file_of(card, folder), device_time(where.device)
    end = time.monotonic() + seconds
    wanted = [one for one in CLASSES if not names or one.kernel in names]
    if where.device.type == "cuda":
        _compile(wanted, dtype, int(machine()["capability"].replace(".", "")))
    classes: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["classes"] if file.is_file() else {}
    for one in wanted:
        if time.monotonic() > end:
            say(f"  {one.kernel} {one.part}: not begun, {seconds:g} s are over")
            continue
        try:
            key, entry = _best(one, where, clock)
        except Exception as error:  # the other classes are still worth measuring
            say(f"  {one.kernel} {one.part} failed: {type(error).__name__}: {error}")
            continue
        classes.pop(key, None)
        if entry:
            classes[key] = entry
        known = report.document("tuning", [], machine=machine())
        facts = {name: known[name] for name in ("machine", "versions", "commit", "time")}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**facts, "classes": classes})
    print(json.dumps({"bench": "kernels --tune", "table": str(file), "classes": classes}, ensure_ascii=False))
    return 0


def _compile(wanted: Sequence[Class], dtype: str, arch: int) -> None:
    """Fill Triton's cache with every candidate, on all cores."""
    jobs = [(one, n) for one in wanted for n in range(-1, len(one.tried))]
    began, cores = time.monotonic(), os.cpu_count() or 1
    say(f"  compiling {len(jobs)} candidates on {cores} cores")
    with ProcessPoolExecutor(min(cores, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        failed = sum(pool.map(partial(compile_one, dtype=dtype or "bfloat16", arch=arch), jobs))
    say(f"  compiled in {time.monotonic() - began:.0f} s; {failed} do not compile or do not fit the chip")


def compile_one(job: tuple[Class, int], *, dtype: str, arch: int) -> bool:
    """Compile what one candidate of a class, or its rule (−1), launches; whether that failed. Needs no card."""
    one, n = job
    kernel = KERNELS[one.kernel]
    where = Where(torch.device("cpu"), DTYPES[dtype], "triton")
    torch.set_num_threads(1)
    problem = kernel.build(where, small_of(kernel, one.shape))
    call = problem.tools["ours"]
    try:
        with tables.watching() as seen, pretend(arch):
            once(problem, call)
        key = next(k for k in seen if k.startswith(f"{one.kernel} {one.part},"))
        if n >= 0:
            with tables.trying(key, one.tried[n]), pretend(arch):
                once(problem, call)
    except Exception:  # as on the card: no candidate
        return True
    return False


def _best(one: Class, where: Where, clock: device_time) -> tuple[str, dict[str, Any] | None]:
    """The key of a class, and its entry if something is faster than the rule."""
    kernel = KERNELS[one.kernel]
    small = kernel.build(where, kernel.small if INTERPRETED else small_of(kernel, one.shape))
    problem = small if INTERPRETED else kernel.build(where, one.shape)
    with tables.watching() as seen:
        once(problem, problem.tools["ours"])
    key = next(k for k in seen if k.startswith(f"{one.kernel} {one.part},"))
    say(f"  {key}")
    rule = _time(problem, one.backward, clock)
    best, settings = rule, {}
    for candidate in one.tried[: 2 if INTERPRETED else None]:
        with tables.trying(key, candidate):
            try:
                if gate(small, small.tools["ours"]):
                    say(f"    {candidate}: wrong result, left out")
                    continue
                taken = _time(problem, one.backward, clock)
            except Exception as error:  # too much shared memory, or a compiler that gives up: not a candidate
                say(f"    {candidate}: {type(error).__name__}")
                continue
        if taken < best:
            best, settings = taken, candidate
    say(f"    rule {seen[key]} {1e3 * rule:.3f} ms, best {settings or 'the same'} {1e3 * best:.3f} ms")
    if rule < best * GAIN:
        return key, None
    return key, {"settings": settings, "ms": round(1e3 * best, 4), "rule_ms": round(1e3 * rule, 4)}


def _time(problem: Problem, backward: bool, clock: device_time) -> float:
    call, prepare = calls_of(problem, "ours", "backward" if backward else "forward")
    if not INTERPRETED:
        clock(call, prepare)
    return statistics.median(clock(call, prepare))
