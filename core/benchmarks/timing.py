"""How a benchmark measures: ours and the peers in turn, medians, and a ratio above 1 where ours is better.

A machine warms up, slows down and does other work in between. Measured one after the other, the second tool gets
another machine than the first; measured in turn (ours, theirs, ours, theirs, …) both get the same one. The median
leaves out the moments when something else ran; the 20th and 80th percentiles say how steady it was.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Row", "document", "rate_row", "seconds_in_turn", "seconds_row"]

Row = dict[str, Any]


def seconds_in_turn(tools: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, the tools taking turns; one round before, not counted, warms them up."""
    taken: dict[str, list[float]] = {name: [] for name in tools}
    for round_number in range(repeats + 1):
        for name, call in tools.items():
            started = time.perf_counter()
            call()
            if round_number:
                taken[name].append(time.perf_counter() - started)
    return taken


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
    other = float(np.median(theirs)) if theirs else None
    ratio = None if other is None else mine / other if better_is_more else other / mine
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


def document(bench: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The result as it is stored: what, where, with which versions, and the rows."""
    versions = {}
    for package in ("luthier", "numpy", "numba", "torch", "regex", "tiktoken", "tokenizers", "gensim"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "bench": bench,
        "machine": {
            "system": platform.system(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
        },
        "versions": versions,
        "threads": {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")},
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "rows": list(rows),
    }


def _cpu() -> str:
    """The processor's name where the system tells it, otherwise its architecture."""
    facts = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", facts.read_text()) if facts.is_file() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the source tree that runs, with `+` if it was changed since; empty for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
