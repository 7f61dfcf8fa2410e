"""How a benchmark measures: first equal, then timed in turn, medians, and a ratio above 1 where ours is better.

A machine warms up, slows down and does other work in between. Measured one after the other, the second tool gets
another machine than the first; measured in turn (ours, theirs, ours, theirs, …) both get the same one. The median
leaves out the moments when something else ran; the 20th and 80th percentiles say how steady it was; and ours against
ours once more, in the same turn, says how far a ratio may be from 1 by chance.

    race        the whole of it for one case: check each tool's result, time them in turn, return the rows
    Tool        what is raced: a call, how much work it does, how its result is checked, what is made ready before it
    in_child    run a function in a fresh process with an environment of its own (numbers of threads)
    most_memory the memory that a step took at most, measured there
    load_own    a user's function out of a file, to be raced too

A row says: in `case` (of `group`) ours came to `ours` (`p20`–`p80`) of `metric` and `peer` to `theirs`; `ratio` above 1
is ours better, whatever the metric; `equal`: the result passed the check that `check` names.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luthier.core.console import say
from luthier.core.errors import ConfigError

__all__ = [
    "AGAIN",
    "Row",
    "Tool",
    "in_child",
    "load_own",
    "most_memory",
    "race",
    "rate_row",
    "rows_of",
    "seconds_in_turn",
    "seconds_row",
    "thread_counts",
]

Row = dict[str, Any]
AGAIN = "ours again"  # the peer of a row that shows the noise
BUDGET = 3.0  # seconds a tool may take in one race before it sits out the rounds that are left


class Tool(NamedTuple):
    """One side of a race. `call` is timed; it is given what `prepare` made, where there is a `prepare`, which is not.
    `amount` is the work of one call in the unit of the metric; `same` judges the result of a first call, which is not
    timed (None: it was judged before)."""

    call: Callable[..., Any]
    amount: float = 1.0
    same: Callable[[Any], bool] | None = lambda _: True
    prepare: Callable[[], Any] | None = None

    def run(self) -> tuple[Any, float, float]:
        """Result, seconds of the call, seconds of making ready; dropping the result is left to the caller, untimed."""
        started = time.perf_counter()
        given = () if self.prepare is None else (self.prepare(),)
        ready = time.perf_counter()
        result = self.call(*given)
        return result, time.perf_counter() - ready, ready - started


# ---------------------------------------------------------------- races


def race(
    case: str,
    metric: str,
    tools: Mapping[str, Tool],
    repeats: int,
    *,
    group: str = "",
    check: str = "",
    noise: bool = True,
    budget: float = BUDGET,
) -> list[Row]:
    """Check every tool's result, then time them in turn; `tools` holds "ours" and the peers by name. A metric that ends
    in "/s" is an amount a second; any other is time a unit of work, in the unit it begins with (s, ms, µs).

    A peer that fails has a row without times that says it is not equal. A slow tool sits out once it has taken `budget`
    seconds, after one round at least."""
    say(f"  {case}")
    equal = {name: _same(name, tool) for name, tool in tools.items()}
    raced = {name: tool for name, tool in tools.items() if equal[name] is not None}
    if noise:
        raced[AGAIN] = tools["ours"]
    taken = _rounds(raced, repeats, budget)
    values: dict[str, list[float]] = {name: [] for name in tools}
    for name, tool in raced.items():
        values[name] = [_value(metric, tool.amount, seconds) for seconds in taken[name]]
    return rows_of(case, metric, values, {name: bool(e) for name, e in equal.items()}, group=group, check=check)


def _same(name: str, tool: Tool) -> bool | None:
    """Whether the result passes; None for a peer that fails and is not to be timed. When ours fails, all does."""
    if tool.same is None:
        return True
    try:
        return bool(tool.same(tool.run()[0]))
    except Exception as error:
        if name == "ours":
            raise
        say(f"  {name} failed: {type(error).__name__}: {error}")
        return None


def _rounds(tools: Mapping[str, Tool], repeats: int, budget: float) -> dict[str, list[float]]:
    """Seconds of each call, the tools taking turns. Before each the garbage is collected, and not while it runs: so
    every one finds the processor's caches full of the same, and nobody of what itself left there a moment ago."""
    taken: dict[str, list[float]] = {name: [] for name in tools}
    spent = dict.fromkeys(tools, 0.0)
    for _ in range(repeats):
        for name, tool in tools.items():
            if taken[name] and spent[name] >= budget:
                continue
            gc.collect()
            gc.disable()
            try:
                _, seconds, before = tool.run()
            finally:
                gc.enable()
            taken[name].append(seconds)
            spent[name] += seconds + before
    return taken


def _value(metric: str, amount: float, seconds: float) -> float:
    if metric.endswith("/s"):
        return amount / seconds
    return seconds / amount * {"s": 1.0, "ms": 1e3, "µs": 1e6}[metric.split()[0]]


def rows_of(
    case: str,
    metric: str,
    values: Mapping[str, Sequence[float]],
    equal: Mapping[str, bool],
    *,
    group: str = "",
    check: str = "",
    more_is_better: bool | None = None,
) -> list[Row]:
    """One row for each tool that is not "ours"; a single one without a peer if ours is alone."""
    better_is_more = metric.endswith("/s") if more_is_better is None else more_is_better
    ours, fine = values["ours"], equal.get("ours", True)
    others = [name for name in values if name != "ours"] or ["none"]
    return [
        {
            **_row(
                case, metric, ours, n, values.get(n, []), fine and equal.get(n, True), better_is_more=better_is_more
            ),
            "group": group,
            "check": check,
        }
        for n in others
    ]


def seconds_in_turn(tools: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, the tools taking turns; one round before, not counted, warms them up."""
    for call in tools.values():
        call()
    return _rounds({name: Tool(call) for name, call in tools.items()}, repeats, float("inf"))


def rate_row(
    case: str, metric: str, amount: float, ours: Sequence[float], peer: str, theirs: Sequence[float], equal: bool
) -> Row:
    """A row of `amount` a second: more is better."""
    rates, other = [amount / s for s in ours], [amount / s for s in theirs]
    return _row(case, metric, rates, peer, other, equal, better_is_more=True)


def seconds_row(
    case: str, metric: str, ours: Sequence[float], peer: str, theirs: Sequence[float], equal: bool, scale: float = 1.0
) -> Row:
    """A row of seconds times `scale`: less is better."""
    return _row(case, metric, [s * scale for s in ours], peer, [s * scale for s in theirs], equal, better_is_more=False)


def _row(
    case: str,
    metric: str,
    ours: Sequence[float],
    peer: str,
    theirs: Sequence[float],
    equal: bool,
    *,
    better_is_more: bool,
) -> Row:
    mine = float(np.median(ours))
    other = float(np.median(theirs)) if len(theirs) else None
    ratio = None if other is None else mine / other if better_is_more else other / mine
    if ratio is not None and min(mine, other or 0.0) < 0:  # of scores below 0 a ratio says nothing
        ratio = None
    p20, p80 = (float(p) for p in np.percentile(ours, [20, 80]))
    return {
        "case": case,
        "metric": metric,
        "ours": _short(mine),
        "peer": peer,
        "theirs": _short(other),
        "ratio": _short(ratio),
        "equal": equal,
        "p20": _short(p20),
        "p80": _short(p80),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def thread_counts(most: int | None = None) -> list[int]:
    """1, 2, 4, … and all cores."""
    cores = most or os.cpu_count() or 1
    return sorted({*(1 << k for k in range(cores.bit_length()) if 1 << k < cores), cores})


# ---------------------------------------------------------------- a process of its own


def in_child(function: Callable[..., Any], *args: Any, environment: Mapping[str, str] | None = None) -> Any:
    """`function(*args)` in a spawned process, with `environment` set before anything is imported there. What libraries
    print goes to stderr. `function` is named by its module, so it and `args` can be pickled. Raises what it raised."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(there, function, args))
    kept = {name: os.environ.get(name) for name in environment or {}}
    os.environ.update(environment or {})
    try:
        process.start()
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    there.close()
    try:
        result, error = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} died in its process (exit code {process.exitcode})") from None
    process.join()
    if error is not None:
        raise error
    return result


def _child(answer: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.dup2(2, 1)
    try:
        answer.send((function(*args), None))
    except Exception as error:  # the parent raises it
        answer.send((None, error))


@dataclass
class Memory:
    """Bytes of this process: held `before`, and the `most` it held from then on."""

    before: int
    most: int = 0


@contextmanager
def most_memory() -> Iterator[Memory]:
    """Measure the memory of what stands under `with`: best in a process of its own that has imported all it needs."""
    with contextlib.suppress(OSError):  # Linux: the peak begins anew. Elsewhere it counts what was before, too
        Path("/proc/self/clear_refs").write_text("5")
    memory = Memory(_peak())
    yield memory
    memory.most = _peak()


def _peak() -> int:
    """Bytes this process held at most. On Linux by its own status, because ru_maxrss begins with its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# ---------------------------------------------------------------- a user's own


def load_own(given: str) -> tuple[str, Callable[..., Any]]:
    """Name and function of `FILE.py:FUNCTION`. Raises ConfigError that says what is missing."""
    file, _, name = given.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier():
        raise ConfigError(f"--with {given}: expected FILE.py:FUNCTION")
    if not path.is_file():
        raise ConfigError(f"--with {given}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--with {given}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"--with {given}: {path} has no function {name}")
    return f"{name} ({path.name})", function
