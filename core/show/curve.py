"""Losses in the terminal, drawn with characters: one run's, or several in one picture.

Two runs are equally good after as many steps, tokens or seconds only if these mean the same in both: a batch may be
twice as large, a step twice as slow. So several runs are drawn over all three, with the settings in which they differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from luthier.core.artifacts import read_json, read_jsonl
from luthier.core.console import counted
from luthier.core.errors import InputError

__all__ = ["curve", "overlay", "show_curves", "show_losses"]

WIDTH, HEIGHT = 72, 12
EIGHTHS = " ▁▂▃▄▅▆▇█"
MARKS = "abcdefghij"


def show_losses(path: Path) -> None:
    """Print the losses of a metrics.jsonl to stdout: first, last, least, and the curve."""
    rows = [row for row in read_jsonl(path) if isinstance(row.get("loss"), int | float)]
    losses = [float(row["loss"]) for row in rows if math.isfinite(row["loss"])]
    if not losses:
        print(f"{path}: no loss in it")
        return
    vectors = (path.parent / "vocabulary.jsonl").is_file()
    print(f"{path}: loss of {counted(len(losses), 'step')}, {'of a pair' if vectors else 'in nats a trained token'}")
    print(f"at the first step {losses[0]:.3f}, at the last step {losses[-1]:.3f}, least {min(losses):.3f}\n")
    print("\n".join(curve(losses)))
    print(f"{'':>8}{_axis(rows[0].get('step', 1), rows[-1].get('step', len(rows)), min(WIDTH, len(losses)))}")


def _axis(first: int, last: int, width: int) -> str:
    """The first and the last step under the ends of a curve; one phrase where the curve is too narrow for both."""
    left, right = f"step {first}", f"step {last}"
    if width > len(left) + len(right):
        return f"{left}{right:>{width - len(left)}}"
    return left if first == last else f"steps {first} to {last}"


def curve(values: Sequence[float], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Lines of text: one column the mean of equally many values, filled from the least value up, in eighths."""
    width = min(width, len(values))
    cuts = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    filled = [1 + (m - low) / span * (8 * height - 1) for m in means]
    lines = []
    for line in range(height - 1, -1, -1):
        body = "".join(EIGHTHS[max(0, min(8, round(f - 8 * line)))] for f in filled)
        label = high if line == height - 1 else low if line == 0 else None
        lines.append(f"{'' if label is None else f'{label:.2f}':>7} {body}".rstrip())
    return lines


# ---------------------------------------------------------------- several runs


def show_curves(folders: Sequence[Path]) -> None:
    """Print the curves of several runs over steps, tokens and seconds, and the settings that differ."""
    if len(folders) > len(MARKS):
        raise InputError(f"{len(folders)} runs in one picture; at most {len(MARKS)} can be told apart")
    files = [path / "metrics.jsonl" if path.is_dir() else path for path in map(Path, folders)]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} does not exist: give the --out of `luthier pretrain` or `luthier finetune`")
    rows = [[row for row in read_jsonl(file) if "loss" in row] for file in files]
    for mark, folder, file, run in zip(MARKS, folders, files, rows, strict=False):
        held = [row["validation_loss"] for row in read_jsonl(file) if "validation_loss" in row]
        ends = f"loss {run[-1]['loss']:.3f} at the last step ({run[-1]['step']:,})" if run else "no step yet"
        print(f"{mark}  {folder}: {ends}{f', {held[-1]:.3f} on held-out text' if held else ''}")
    _print_differences(files)
    for axis in ("steps", "tokens", "seconds"):
        lines = [_points(file, run, axis) for file, run in zip(files, rows, strict=True)]
        if any(lines):
            print(f"\nloss over {axis}")
            print("\n".join(overlay(lines)))


def overlay(runs: Sequence[Sequence[tuple[float, float]]], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Lines of text: the (x, loss) points of every run, a letter each; `*` where two runs meet."""
    right = max((x for run in runs for x, _ in run), default=1.0) or 1.0
    columns = [_columns(run, right, width) for run in runs]
    values = [y for column in columns for y in column if y is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    grid = [[" "] * width for _ in range(height)]
    for mark, column in zip(MARKS, columns, strict=False):
        for x, y in enumerate(column):
            if y is not None:
                line = round((high - y) / ((high - low) or 1.0) * (height - 1))
                grid[line][x] = mark if grid[line][x] == " " else "*"
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    lines = [f"{labels.get(i, ''):>7} {''.join(line)}".rstrip() for i, line in enumerate(grid)]
    return [*lines, f"{'':>8}0{right:>{width - 1},.0f}"]


def _columns(run: Sequence[tuple[float, float]], right: float, width: int) -> list[float | None]:
    """The mean loss of the points that fall into each column."""
    held: list[list[float]] = [[] for _ in range(width)]
    for x, y in run:
        if math.isfinite(y):
            held[min(width - 1, int(x / right * width))].append(y)
    return [sum(ys) / len(ys) if ys else None for ys in held]


def _points(file: Path, rows: Sequence[dict[str, Any]], axis: str) -> list[tuple[float, float]]:
    if axis == "steps":
        return [(row["step"], row["loss"]) for row in rows]
    if axis == "tokens":
        return [(row["tokens"], row["loss"]) for row in rows if "tokens" in row]
    clock = file.with_name("clock.jsonl")
    if not clock.is_file():
        return []
    seconds = _added_up([(row["step"], row["seconds"]) for row in read_jsonl(clock)])
    return [(seconds[row["step"]], row["loss"]) for row in rows if row["step"] in seconds]


def _added_up(clock: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Seconds of a run at each step that was timed; a start after an interruption counts on from where it resumed."""
    times: dict[int, float] = {}
    before, last = 0.0, 0.0
    for step, seconds in clock:
        if seconds < last:
            before = max((t for s, t in times.items() if s <= step), default=0.0)
        times[step], last = before + seconds, seconds
    return times


def _print_differences(files: Sequence[Path]) -> None:
    """The settings and inputs in which runs differ, a line each; what no run has is none, known or not."""
    known = [_settings(file.parent) for file in files]
    names = sorted({name for settings in known for name in settings})
    for name in names:
        values = [settings.get(name, "not known") for settings in known]
        if any(value != values[0] for value in values) and not {*values} <= {"None", "not known"}:
            print(f"   {name}: " + ", ".join(f"{mark} {value}" for mark, value in zip(MARKS, values, strict=False)))


def _settings(folder: Path) -> dict[str, str]:
    if (folder / "run.json").is_file():
        about = read_json(folder / "run.json")
        return {k: str(v) for k, v in {**about["config"], **about["given"], "threads": about["threads"]}.items()}
    if (folder / "manifest.json").is_file():
        return {name: str(value) for name, value in read_json(folder / "manifest.json")["settings"].items()}
    return {}
