"""Our kernels beside everybody's: first right, then fast, against what the card itself can do.

    gate      ours and each peer on a small shape against float64, outputs and gradients, within the error budget of
              kernels/budget.py; then every result at full size against ours, by norm (an index that overflows shows
              there). Compiled peers are judged at full size only
    time      on a card by events, the cache of the card emptied and its queue filled before each call, so that neither
              the last call's data nor the processor's time to launch is in it; the tools take turns
    peak      measured first: copying 1 GiB (bytes read and written a second) and a product of two large matrices. A
              kernel's share is its GB/s or TFLOP/s over that
    memory    the most that was allocated during one forward and backward pass, beyond inputs, outputs and gradients

On a CPU the PyTorch twins are timed, and with TRITON_INTERPRET=1 the kernels in the interpreter, where times mean
nothing: both show that the benchmark runs, not how fast a kernel is.

Only torch, triton, numpy and the standard library are imported: a lent or rented GPU machine has no more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.core.artifacts import write_json
from luthier.core.benchmarks import report
from luthier.core.benchmarks.kernel_cases import KERNELS, Kernel, Problem, Shape, Where
from luthier.core.benchmarks.kernel_peers import COMPILED, LATE
from luthier.core.benchmarks.timing import AGAIN, Row, load_own, rows_of
from luthier.core.console import say
from luthier.core.errors import ConfigError, did_you_mean
from luthier.kernels.budget import violations
from luthier.kernels.launch import INTERPRETED, triton

__all__ = ["calls_of", "device_time", "gate", "machine", "main", "once", "run", "small_of", "where_to_run"]

CHECK = "within twice the error of the plain formula in the same dtype, against float64; at full size near ours"
CONVENTION = (
    "Operations: a product of [m, k] and [k, n] counts 2·m·k·n; causal attention half of the full one, forward two "
    "products, backward five. Bytes: those that must cross memory once."
)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NEAR = {torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 4e-2}  # max|a − b| / max|b|
ROUND = 0.03  # seconds that the calls of one tool take in one round
MOST_CALLS = 100


# ---------------------------------------------------------------- one tool


def _leaves(problem: Problem) -> list[Tensor]:
    return [x for x in problem.inputs if isinstance(x, Tensor) and x.requires_grad]


def _forward(problem: Problem, tool: Callable[..., Any]) -> list[Tensor]:
    out = tool(*problem.inputs)
    return list(out) if isinstance(out, tuple | list) else [] if out is None else [out]


def _slopes(outs: list[Tensor]) -> list[Tensor]:
    """A gradient for each output, the same numbers for every tool; made where the output lies, which is far quicker for
    millions of them than to make them on the processor."""
    return [
        torch.randn(out.shape, generator=torch.Generator(out.device).manual_seed(9 + i), device=out.device).to(
            out.dtype
        )
        for i, out in enumerate(outs)
    ]


def _backward(problem: Problem, outs: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outs, _leaves(problem), slopes))


def once(problem: Problem, tool: Callable[..., Any]) -> list[Tensor]:
    """All results at full size: outputs and gradients, or what a step made of its lists."""
    if problem.steps:
        return _after(problem, tool, None, times=1)[: len(problem.inputs[0])]  # the weights
    outs = _forward(problem, tool)
    return [*(out.detach() for out in outs), *(_backward(problem, outs, _slopes(outs)) if _leaves(problem) else [])]


def _after(problem: Problem, tool: Callable[..., Any], dtype: torch.dtype | None, times: int) -> list[Tensor]:
    """What so many steps make of copies of the lists, in another dtype if wanted; codes of 8 bits are left out."""
    own = problem.inputs[0][0].dtype
    copies = [[x.to(dtype or own if x.dtype == own else x.dtype, copy=True) for x in xs] for xs in problem.inputs]
    for _ in range(times):
        tool(*copies)
    return [x for xs in copies for x in xs if x.is_floating_point()]


def gate(problem: Problem, tool: Callable[..., Any]) -> list[str]:
    """What is outside the error budget on this (small) problem; empty if the tool is right."""
    if not problem.steps:
        with torch.set_grad_enabled(bool(_leaves(problem))):
            return violations(tool, problem.plain, problem.inputs, problem.floor)
    found, plain, truth = (
        _after(problem, f, dtype, problem.steps)
        for f, dtype in ((tool, None), (problem.plain, None), (problem.plain, torch.float64))
    )
    worst = [
        (float((o - t).abs().max()), 2 * float((r - t).abs().max()) + problem.floor)
        for o, r, t in zip(found, plain, truth, strict=True)
    ]
    return [f"list number {i} is off by {w:.3g}, may be {b:.3g}" for i, (w, b) in enumerate(worst) if not w <= b]


def _near(a: Sequence[Tensor], b: Sequence[Tensor], most: float) -> bool:
    """Whether two tools' results are near each other, by norm."""
    if len(a) != len(b):
        return False
    pairs = [(x.float(), y.float()) for x, y in zip(a, b, strict=True)]
    return all(float((x - y).abs().max()) <= most * (float(y.abs().max()) + 1e-6) for x, y in pairs)


# ---------------------------------------------------------------- time


class device_time:
    """Seconds of a call on a device: `device_time(device)(call, prepare)` gives a few of them, at most `ROUND` s."""

    def __init__(self, device: torch.device) -> None:
        self.card = device.type == "cuda"
        if self.card:  # larger than any card's cache
            self.flush = torch.empty(2**28, dtype=torch.int8, device=device)

    def __call__(self, call: Callable[..., Any], prepare: Callable[[], Any] | None = None) -> list[float]:
        taken: list[float] = []
        cycles, started = 0, time.perf_counter()
        while not taken or (sum(taken) < ROUND and len(taken) < MOST_CALLS and time.perf_counter() - started < 2):
            given = () if prepare is None else (prepare(),)
            seconds, cycles = self._on_card(call, given, cycles) if self.card else (_seconds(call, given), 0)
            taken.append(seconds)
        return taken

    def _on_card(self, call: Callable[..., Any], given: tuple[Any, ...], cycles: int) -> tuple[float, int]:
        """Seconds between two events, and how long to keep the card busy before the next call, in its cycles."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        if cycles:
            torch.cuda._sleep(cycles)
        start.record()
        began = time.perf_counter()
        call(*given)
        launching = time.perf_counter() - began
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, int(min(launching * 1.5, 0.02) * 2e9)


def _seconds(call: Callable[..., Any], given: tuple[Any, ...]) -> float:
    began = time.perf_counter()
    call(*given)
    return time.perf_counter() - began


def _in_turn(
    clock: device_time, calls: dict[str, tuple[Callable[..., Any], Any]], repeats: int
) -> dict[str, list[float]]:
    """The median of each round, the tools taking turns; one round before warms them up."""
    if not INTERPRETED:
        for call, prepare in calls.values():
            clock(call, prepare)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (call, prepare) in calls.items():
            taken[name].append(statistics.median(clock(call, prepare)))
    return taken


def _peaks(where: Where, clock: device_time) -> tuple[dict[str, float], list[Row]]:
    """GB/s of a copy and TFLOP/s of a product on this device."""
    numbers, side = (2**28, 8192) if clock.card else (2**23, 512 if INTERPRETED else 1024)
    a, b = (torch.zeros(numbers, dtype=torch.float32, device=where.device) for _ in range(2))
    x, y = (where.normal(side, side, seed=s, learned=False) for s in range(2))
    copy = [statistics.median(clock(lambda: b.copy_(a))) for _ in range(5)]
    product = [statistics.median(clock(lambda: x @ y)) for _ in range(5)]
    peaks = {"GB/s": 8 * numbers / min(copy) / 1e9, "TFLOP/s": 2 * side**3 / min(product) / 1e12}
    name = str(where.dtype).removeprefix("torch.")
    cases = (
        (f"copy of {4 * numbers / 2**20:,.0f} MiB", "GB/s"),
        (f"product of {side:,} × {side:,}, {name}", "TFLOP/s"),
    )
    rows = [row for case, unit in cases for row in rows_of(case, unit, {"ours": [peaks[unit]]}, {}, group="peaks")]
    return peaks, rows


# ---------------------------------------------------------------- one problem


def _judged(where: Where, problem: Problem, small: Problem) -> dict[str, bool]:
    """Which tools are right; one that fails is left out. Raises what ours raises."""
    right: dict[str, bool] = {}
    expected: list[Tensor] = []
    for name, tool in problem.tools.items():
        try:
            wrong = [] if name in LATE else gate(small, small.tools.get(name, tool))
            found = once(problem, tool)
            expected = expected or found
            if not _near(found, expected, problem.near * NEAR[where.dtype]):
                wrong.append("far from ours at full size")
        except Exception as error:
            if name == "ours":
                raise
            say(f"    {name} failed: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
            continue
        right[name] = not wrong
        for line in wrong[:2]:
            say(f"    {name}: {line}")
    return right


def calls_of(problem: Problem, name: str, what: str) -> tuple[Callable[..., Any], Callable[[], Any] | None]:
    tool = problem.tools[name]
    slopes = _slopes(_forward(problem, tool)) if "backward" in what else []
    if what == "backward":
        return lambda outs: _backward(problem, outs, slopes), lambda: _forward(problem, tool)
    if what == "forward and backward":
        return lambda: _backward(problem, _forward(problem, tool), slopes), None
    return lambda: _forward(problem, tool), None


def _race(
    where: Where, kernel: Kernel, group: str, problem: Problem, right: dict[str, bool], clock: device_time,
    peaks: dict[str, float], repeats: int,
) -> Iterator[Row]:  # fmt: skip
    """The rows of each pass and of memory."""
    metric = "TFLOP/s" if kernel.products else "GB/s"
    kind, dtype = 1 if kernel.products else 0, str(where.dtype).removeprefix("torch.")
    for what, amounts in problem.passes.items():
        case = f"{what} {dtype}, {problem.name}"
        say(f"  {group} {case}")
        calls = {name: calls_of(problem, name, what) for name in right}
        if not INTERPRETED:
            calls[AGAIN] = calls["ours"]
        taken = _in_turn(clock, calls, repeats)
        scale = amounts[kind] / (1e12 if kernel.products else 1e9)
        values = {name: [scale / s for s in seconds] for name, seconds in taken.items()}
        values |= {name: [] for name in problem.tools if name not in right}
        judged = {name: right.get(name, False) for name in problem.tools}
        for row in rows_of(case, metric, values, judged, group=group, check=CHECK):
            milliseconds = 1e3 * statistics.median(taken["ours"])
            yield row | {"ms": float(f"{milliseconds:.4g}"), "share": round(row["ours"] / peaks[metric], 3)}
    if clock.card:
        yield from _memory(where, group, problem, right, dtype)


def _memory(where: Where, group: str, problem: Problem, right: dict[str, bool], dtype: str) -> list[Row]:
    """The most that each tool holds beside inputs, outputs and gradients, MB."""
    values: dict[str, list[float]] = {}
    for name in right:
        slopes = _slopes(_forward(problem, problem.tools[name])) if _leaves(problem) else []
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = _forward(problem, problem.tools[name])
        results += _backward(problem, results, slopes) if _leaves(problem) else []
        torch.cuda.synchronize()
        kept = sum(x.numel() * x.element_size() for x in results)
        values[name] = [max(torch.cuda.max_memory_allocated() - before - kept, 1000) / 1e6]
        del results
    case = f"memory {dtype}, {problem.name}"
    metric = "MB beyond inputs and results"
    if problem.logits:
        metric = "% of the logits' bytes, beyond inputs and results"
        values = {name: [1e8 * most[0] / problem.logits] for name, most in values.items()}
    return rows_of(case, metric, values, right, group=group, check=CHECK, more_is_better=False)


# ---------------------------------------------------------------- all of it


def run(
    *, names: Sequence[str] = (), shape: Shape | None = None, dtype: str = "", full: bool = False,
    own: str | None = None, repeats: int = 5, seconds: float = float("inf"),
    done: Callable[[list[Row]], Any] = lambda _: None,
) -> list[Row]:  # fmt: skip
    """All rows; `done` is given what is there after each kernel, and no kernel is begun after so many `seconds`.

    Raises ConfigError for a name, a shape or a dtype that is none.
    """
    names, where = _names(names), where_to_run(dtype, full)
    if (shape or own) and len(names) != 1:
        raise ConfigError("--shape and --with are for one kernel: name it, as luthier bench kernels attention …")
    if shape and not _fits(KERNELS[names[0]], shape):
        raise ConfigError(f"--shape {','.join(map(str, shape))}: {names[0]} takes {KERNELS[names[0]].letters}")
    tool = load_own(own) if own else None
    clock, end = device_time(where.device), time.monotonic() + seconds
    peaks, rows = _peaks(where, clock)
    for name in names:
        kernel = KERNELS[name]
        at = replace(where, dtype=torch.float32) if kernel.whole and not dtype else where
        if time.monotonic() > end:
            say(f"  {name}: not begun, {seconds:g} s are over")
            continue
        for i, one in enumerate([shape] if shape else _shapes(kernel, where)):
            rows += _measured(at, name, one, tool, i == 0, clock, peaks, repeats)
        done(rows)
    return rows


def _measured(
    where: Where, name: str, shape: Shape, tool: tuple[str, Callable[..., Any]] | None, first: bool,
    clock: device_time, peaks: dict[str, float], repeats: int,
) -> list[Row]:  # fmt: skip
    """The rows of one kernel on one shape; where ours fails, one that says so: the others are still worth measuring,
    and a card may be there for minutes only."""
    kernel, case, rows = KERNELS[name], ",".join(map(str, shape)), []
    try:
        problem = _with_own(kernel.build(where, shape), tool)
        case = problem.name
        if not first:  # a compiler takes long for each shape; the first tells enough
            problem.tools.pop(COMPILED, None)
        small = problem if INTERPRETED else _with_own(kernel.build(where, small_of(kernel, shape)), tool)
        right = _judged(where, problem, small)
        rows += _race(where, kernel, name, problem, right, clock, peaks, repeats)
    except Exception:
        say(f"    ours failed on {case}:\n{traceback.format_exc()}")
        failed = f"FAILED: {case}"
        rows += rows_of(failed, "TFLOP/s" if kernel.products else "GB/s", {"ours": [0.0]}, {"ours": False}, group=name)
    return rows


def _names(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in KERNELS:
            raise ConfigError(f"no kernel {name}{did_you_mean(name, KERNELS)}; there are {', '.join(KERNELS)}")
    return list(names) or list(KERNELS)


def where_to_run(dtype: str = "", full: bool = False) -> Where:
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: there are {', '.join(DTYPES)}")
    card = torch.cuda.is_available() and not INTERPRETED
    device = torch.device("cuda" if card else "cpu")
    kind = DTYPES[dtype or ("bfloat16" if card else "float32")]
    return Where(device, kind, "triton" if card or INTERPRETED else "torch", full)


def _fits(kernel: Kernel, shape: Shape) -> bool:
    return len(shape) in {len(letters.split(",")) for letters in kernel.letters.split(" or ")} and min(shape) > 0


def _shapes(kernel: Kernel, where: Where) -> Sequence[Shape]:
    return kernel.card if where.device.type == "cuda" else [kernel.small if INTERPRETED else kernel.cpu]


def small_of(kernel: Kernel, shape: Shape) -> Shape:
    """The shape of the gate: batch and lengths are cut, heads and widths stay."""
    letters = next(one for one in kernel.letters.split(" or ") if one.count(",") == len(shape) - 1).split(",")
    cut = [i == 0 or letter in "TS" for i, letter in enumerate(letters)]
    return tuple(min(n, kernel.small[i]) if cut[i] else n for i, n in enumerate(shape))


def _with_own(problem: Problem, tool: tuple[str, Callable[..., Any]] | None) -> Problem:
    return problem if tool is None else replace(problem, tools={**problem.tools, tool[0]: tool[1]})


def machine() -> dict[str, Any]:
    """The card and what drives it."""
    if not torch.cuda.is_available() or INTERPRETED:
        return {"interpreter": True} if INTERPRETED else {}
    facts = torch.cuda.get_device_properties(0)
    return {
        "gpu": facts.name,
        "gpu_memory_gb": round(facts.total_memory / 1e9, 1),
        "multiprocessors": facts.multi_processor_count,
        "capability": f"{facts.major}.{facts.minor}",
        "cuda": torch.version.cuda,
        "triton": getattr(triton, "__version__", ""),
    }


# ---------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    about = (
        "Time each kernel beside its peers on this machine's card, after checking results against float64; on a CPU "
        "its PyTorch twin. The last line of stdout is one JSON document; exit code 1 if a result is not equal."
    )
    shapes = "\n".join(f"  {name:<22}{kernel.letters:<24}{kernel.function}" for name, kernel in KERNELS.items())
    parser = argparse.ArgumentParser(
        "luthier bench kernels", description=about, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"shapes, and how a function given by --with is called:\n{shapes}\n\n"
        "Example: luthier bench kernels attention --shape 1,4096,32,8,128 --dtype bfloat16\n"
        "Takes minutes for all kernels; --seconds ends it sooner. It has not run on a card yet.",
    )  # fmt: skip
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="kernels to measure; left out, all")
    add("--shape", help="a case of one's own for one kernel, numbers with commas between")
    add("--dtype", default="", help="bfloat16, float16 or float32; left out, bfloat16 on a card and float32 on a CPU")
    add("--full", action="store_true", help="attention without a causal mask")
    add("--with", dest="own", help="FILE.py:FUNCTION of your own to put through the same gate and race")
    add("--against", type=Path, help="a saved result: also print how each row changed since")
    add("--repeats", type=int, default=5, help="rounds in which every tool has its turn (5)")
    add("--seconds", type=float, default=float("inf"), help="begin no other kernel after this time")
    add("--out", type=Path, help="write the JSON here after every kernel: a run that is cut off keeps what it measured")
    add("--save", action="store_true", help="also write the JSON to docs/benchmarks/kernels-HARDWARE-MONTH.json")
    add("--tune", action="store_true", help="find the best tiles for this card and write its table, instead of racing")
    add("--tables", type=Path, help="folder of the tables that --tune writes; left out, the one that kernels read")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    if given.repeats < 1:
        raise ConfigError(f"--repeats {given.repeats}: expected 1 or more")
    if given.tune:
        from luthier.core.benchmarks.kernel_tuning import tune

        return tune(
            _names(given.names) if given.names else (), dtype=given.dtype, seconds=given.seconds, folder=given.tables
        )
    then = report.read(given.against, "kernels") if given.against else None
    load = os.getloadavg()[0]
    say(_said())
    make: Callable[[list[Row]], dict[str, Any]] = lambda rows: report.document("kernels", rows, load, machine())  # noqa: E731
    rows = run(
        names=given.names, shape=_shape(given.shape), dtype=given.dtype, full=given.full, own=given.own,
        repeats=given.repeats, seconds=given.seconds,
        done=lambda rows: given.out and write_json(given.out, make(rows)),
    )  # fmt: skip
    result, colour = make(rows), report.colourful()
    print("\n" + report.tables(result, colour) + f"\n{CONVENTION}\n{_said()}")
    if then:
        print("\n" + report.the_change(result, then, colour))
    if given.save:
        print(f"saved as {report.save(result)}")
    print(json.dumps(result, ensure_ascii=False))
    return 0 if all(row["equal"] for row in rows) else 1


def _said() -> str:
    """What is timed here."""
    if INTERPRETED:
        return "Triton's interpreter runs the kernels on the CPU: results are checked, times mean nothing."
    if not torch.cuda.is_available():
        return "No NVIDIA card here: the PyTorch twins are timed on the CPU, not the kernels."
    return f"Timed on {torch.cuda.get_device_name()}."


def _shape(text: str | None) -> Shape | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--shape {text}: expected whole numbers with commas between") from None
