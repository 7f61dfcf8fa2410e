"""What a benchmark hands out: the document that is stored, the tables that are read, the change since another time.

Nothing but the standard library is imported here: a rented GPU machine has little more.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from luthier.core.benchmarks.timing import AGAIN, Row
from luthier.core.errors import InputError

__all__ = ["document", "read", "save", "tables", "the_change"]

PACKAGES = (
    *("luthier", "numpy", "numba", "torch", "triton", "regex", "tiktoken", "tokenizers", "transformers", "gigatoken"),
    *("bpe-openai", "rustbpe", "sentencepiece", "gensim"),
    *("liger-kernel", "flash-attn", "bitsandbytes"),
)

# ---------------------------------------------------------------- the document


def document(
    bench: str, rows: Sequence[Row], load: float | None = None, machine: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The result as it is stored: what, where, with which versions, and the rows. `load`: how busy the machine was
    before, which a benchmark that was just run cannot tell. `machine`: more facts about it, such as its card."""
    versions = {}
    for package in PACKAGES:
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
            "load": round(os.getloadavg()[0] if load is None else load, 2),
            "python": platform.python_version(),
            **(machine or {}),
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


def save(result: dict[str, Any]) -> Path:
    """Write the document to docs/benchmarks/ and return its path. Rows that this machine and these versions gave in the
    same month and that were not measured again stay; `pieces` then says which group was measured when."""
    from luthier.core.artifacts import write_json

    name = f"{result['bench']}-{_slug(_hardware(result) or platform.machine())}-{time.strftime('%Y-%m')}.json"
    path = Path("docs/benchmarks") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read(path, result["bench"]) if path.is_file() else {}
    if before and before["threads"] != result["threads"]:  # its rows are other measurements
        path = path.with_stem(f"{path.stem}-{result['threads']['OMP_NUM_THREADS'] or 'all'}-threads")
        before = read(path, result["bench"]) if path.is_file() else {}
    same = before.get("versions") == result["versions"] and _hardware(before) == _hardware(result)
    write_json(path, _joined(before, result) if same else result)
    return path


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    again = {_case(row) for row in new["rows"]}
    kept = [row for row in old["rows"] if _case(row) not in again]
    groups = {row["group"] for row in kept}
    pieces = [{**p, "groups": [g for g in p["groups"] if g in groups]} for p in old.get("pieces", [_piece(old)])]
    return {**new, "rows": kept + new["rows"], "pieces": [*(p for p in pieces if p["groups"]), _piece(new)]}


def _case(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a row measured, without the result that some cases have in their names."""
    return row["group"], re.sub(r"( \(ours .*|, \d+ seeds: .*)$", "", row["case"]), row["metric"]


def _piece(result: dict[str, Any]) -> dict[str, Any]:
    about = {name: result[name] for name in ("commit", "time", "threads")}
    return {
        "groups": list(dict.fromkeys(r["group"] for r in result["rows"])),
        **about,
        "load": result["machine"]["load"],
    }


def _hardware(result: dict[str, Any]) -> str:
    """What ran: the card where there was one."""
    machine = result.get("machine", {})
    return machine.get("gpu") or machine.get("cpu", "")


def _slug(name: str) -> str:
    """A part of a file name, without what every processor's name has: intel-xeon."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|\bprocessor\b|\bcpu\b", "", name.lower())).strip("-")


def read(file: Path, bench: str) -> dict[str, Any]:
    """A saved document, or output that was kept, whose last line is one. Raises InputError for what is neither."""
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    for part in (text, text.rpartition("\n")[2]):
        try:
            result = json.loads(part)
        except ValueError:
            continue
        if isinstance(result, dict) and isinstance(result.get("rows"), list) and result.get("bench") == bench:
            return result
    raise InputError(f"{file}: no result of luthier bench {bench}\nSave one with: luthier bench {bench} --save")


# ---------------------------------------------------------------- tables

GOOD, EVEN, BAD, QUIET, STRONG = "32", "33", "31", "2", "1"  # ANSI: green, yellow, red, dim, bold


class Cell(NamedTuple):
    """Text in a table and how a terminal paints it."""

    text: str
    paint: str = ""


def tables(result: dict[str, Any], colour: bool = False) -> str:
    """One table a group: a line a case, a column a peer, and at its end the ratio to the fastest of them; then in a few
    lines what it comes to."""
    machine, commit = result["machine"], result["commit"]
    facts = [result["bench"], machine.get("gpu", ""), machine["cpu"], f"{machine['cores']} cores"]
    facts += [f"load {machine['load']}", f"Python {machine['python']}", commit[:9] + "+" * commit.endswith("+")]
    parts = [_paint(" · ".join(filter(None, facts)), STRONG, colour), ""]
    for (group, metric), rows in _groups(result["rows"]):
        parts += [_paint(f"{group + ', ' if group else ''}{metric}", STRONG, colour)]
        parts += [*_grid(_pivot(rows), colour), ""]
    return "\n".join([*parts, *(_paint(text, paint, colour) for text, paint in _summary(result["rows"], machine))])


def _groups(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    order: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        order.setdefault((row.get("group", ""), row["metric"]), []).append(row)
    yield from order.items()


def _cases(rows: Iterable[Row]) -> list[tuple[str, dict[str, Row]]]:
    """Case → its rows by peer, in order; the peer's name without its version."""
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[_short_name(row["peer"])] = row
    return list(cases.items())


def _short_name(peer: str) -> str:
    """A peer without its version; a row of ours against ours keeps one name."""
    return AGAIN if peer in (AGAIN, "ours") else re.sub(r" v?\d[\w.+]*$", "", peer)


def _pivot(rows: Sequence[Row]) -> list[list[Cell]]:
    """The lines of one table, its head first; a column that would be empty is left out."""
    cases = _cases(rows)
    peers = list(dict.fromkeys(p for _, by_peer in cases for p in by_peer if p not in (AGAIN, "none")))
    lines = [_head(peers), *(_line(case, by_peer, peers) for case, by_peer in cases)]
    kept = [n for n in range(len(lines[0])) if any(line[n].text for line in lines[1:])]
    return [[line[n] for n in kept] for line in lines]


def _head(peers: Sequence[str]) -> list[Cell]:
    return [
        Cell(text, QUIET) for text in ("case", "ours", "20–80%", "ms", "of peak", *peers, "noise", "against the best")
    ]


def _line(case: str, by_peer: dict[str, Row], peers: Sequence[str]) -> list[Cell]:
    first, best = next(iter(by_peer.values())), fastest(by_peer)
    spread = f"{_number(first['p20'])}–{_number(first['p80'])}" if first["p20"] != first["p80"] else ""
    return [
        Cell(case),
        Cell(_number(first["ours"]), STRONG),
        Cell(spread, QUIET),
        Cell(_number(first["ms"]) if "ms" in first else "", QUIET),
        Cell(f"{first['share']:.0%}" if "share" in first else ""),
        *(_peer_cell(by_peer.get(peer), peer == best) for peer in peers),
        Cell(f"±{noise(by_peer):.1%}" if AGAIN in by_peer else "", QUIET),
        _verdict(by_peer, best),
    ]


def _peer_cell(row: Row | None, best: bool) -> Cell:
    if row is None or (row["theirs"] is None and row["equal"]):
        return Cell("")
    if row["theirs"] is None:
        return Cell("failed ≠", BAD)
    if not row["equal"]:
        return Cell(f"{_number(row['theirs'])} ≠", BAD)
    return Cell(_number(row["theirs"]), "" if best else QUIET)


def fastest(by_peer: dict[str, Row]) -> str | None:
    """The peer that is best among those whose results are equal, or None without one. Ours in another way is none."""
    ratios = {
        name: row["ratio"]
        for name, row in by_peer.items()
        if not name.startswith("ours") and row["ratio"] is not None and row["equal"]
    }
    return min(ratios, key=ratios.__getitem__, default=None)


def noise(by_peer: dict[str, Row]) -> float:
    """How far ours was from ours, as a part of 1."""
    row = by_peer.get(AGAIN)
    return abs(row["ratio"] - 1) if row and row["ratio"] else 0.0


def _verdict(by_peer: dict[str, Row], best: str | None) -> Cell:
    if best is None:
        wrong = any(not row["equal"] for row in by_peer.values())
        return Cell("not equal" if wrong else "", BAD)
    ratio = by_peer[best]["ratio"]
    paint = GOOD if ratio >= 1 else EVEN if ratio >= 1 - noise(by_peer) else BAD
    return Cell(f"{ratio:.2f} × {best}", paint)


def _summary(rows: Sequence[Row], machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the tables come to, a line each; whether the machine was busy; which results were not equal."""
    for (group, metric), of_group in _groups(rows):
        ratios = [by_peer[best]["ratio"] for _, by_peer in _cases(of_group) if (best := fastest(by_peer))]
        if ratios:
            even = sum(r >= 1 for r in ratios)
            spread = f"{min(ratios):.2f}" if len(ratios) == 1 else f"{min(ratios):.2f} to {max(ratios):.2f}"
            text = f"{spread} × the best peer, 1 or better in {even} of {len(ratios)}: {group or metric}"
            yield text + f", {metric}" * (metric.startswith("MB") and bool(group)), GOOD if even == len(ratios) else BAD
    if machine["load"] > 0.5 * machine["cores"]:
        yield f"other work was running (load {machine['load']} on {machine['cores']} cores): see the noise", EVEN
    for row in rows:
        if not row["equal"]:
            check = f" ({row['check']})" if row.get("check") else ""
            yield f"NOT EQUAL: {row.get('group', '')} {row['case']}, {row['peer']}{check}".replace("  ", " "), BAD


def _number(value: float | None) -> str:
    """Three digits that count, thousands apart."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _grid(lines: Sequence[Sequence[Cell]], colour: bool) -> list[str]:
    """Columns under each other: the first to the left, the others to the right."""
    widths = [max(len(line[n].text) for line in lines) for n in range(len(lines[0]))]
    grid = []
    for line in lines:
        cells = [
            _paint(cell.text.rjust(width) if n else cell.text.ljust(width), cell.paint, colour)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        grid.append("  " + "   ".join(cells).rstrip())
    return grid


def _paint(text: str, paint: str, colour: bool) -> str:
    return f"\033[{paint}m{text}\033[0m" if colour and paint else text


def colourful() -> bool:
    """Whether stdout is a terminal that shows colours."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


# ---------------------------------------------------------------- since another time


def the_change(now: dict[str, Any], then: dict[str, Any], colour: bool = False) -> str:
    """Ours now against ours then, a line a case, and whether the change is more than chance.

    Chance is the largest of: ours against ours in either run, and half of what lies between the 20th and the 80th
    percentile in either. On another machine only the ratio to the fastest peer that both runs have is compared.
    """
    same_machine = _hardware(now) == _hardware(then)
    title = f"since {then['time'][:16]} {then['commit'][:9]}".rstrip()
    if not same_machine:
        title += f", which ran on {_hardware(then)}: ratios to the fastest peer are compared"
    before = {(*key, case): by_peer for key, rows in _groups(then["rows"]) for case, by_peer in _cases(rows)}
    lines = [[Cell(t, QUIET) for t in ("case", "then", "now", "change", "noise", "")]]
    missing = 0
    for (group, metric), rows in _groups(now["rows"]):
        for case, by_peer in _cases(rows):
            old = before.get((group, metric, case))
            pair = _compared(by_peer, old, same_machine) if old else None
            if old is None or pair is None:
                missing += 1
                continue
            name = f"{group + ': ' if group else ''}{case}, {metric if same_machine else 'ratio'}"
            lines.append([Cell(name), *_changed(*pair, max(_floor(by_peer), _floor(old)))])
    end = [f"{missing} cases are not in that result"] if missing else []
    return "\n".join([_paint(title, STRONG, colour), *_grid(lines, colour), *end])


def _compared(now: dict[str, Row], then: dict[str, Row], same_machine: bool) -> tuple[float, float, bool] | None:
    """The two numbers to compare, and whether more of it is better."""
    a, b = next(iter(now.values())), next(iter(then.values()))
    if same_machine:
        return a["ours"], b["ours"], a["metric"].endswith("/s")
    shared = {n: row for n, row in now.items() if n in then and then[n]["ratio"] is not None}
    best = fastest(shared)
    return None if best is None else (now[best]["ratio"], then[best]["ratio"], True)


def _floor(by_peer: dict[str, Row]) -> float:
    row = next(iter(by_peer.values()))
    return max(noise(by_peer), (row["p80"] - row["p20"]) / 2 / row["ours"] if row["ours"] else 0.0)


def _changed(now: float, then: float, more_is_better: bool, floor: float) -> list[Cell]:
    gain = (now / then if more_is_better else then / now) - 1 if now and then else 0.0
    if abs(gain) <= floor:
        word, paint = "within noise", QUIET
    else:
        word, paint = ("better", GOOD) if gain > 0 else ("worse", BAD)
    return [
        Cell(_number(then)),
        Cell(_number(now)),
        Cell(f"{gain:+.1%}", paint),
        Cell(f"±{floor:.1%}", QUIET),
        Cell(word, paint),
    ]
