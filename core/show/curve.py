"""A training run's losses in the terminal, drawn with characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from luthier.core.artifacts import read_jsonl

__all__ = ["curve", "show_losses"]

WIDTH, HEIGHT = 72, 12
EIGHTHS = " ▁▂▃▄▅▆▇█"


def show_losses(path: Path) -> None:
    """Print the losses of a metrics.jsonl to stdout: first, last, least, and the curve."""
    rows = [row for row in read_jsonl(path) if isinstance(row.get("loss"), int | float)]
    losses = [float(row["loss"]) for row in rows if math.isfinite(row["loss"])]
    if not losses:
        print(f"{path}: no loss in it")
        return
    print(f"{path}: loss of {len(losses):,} steps, in nats a trained token")
    print(f"first {losses[0]:.3f}, last {losses[-1]:.3f}, least {min(losses):.3f}\n")
    print("\n".join(curve(losses)))
    last = f"step {rows[-1].get('step', len(rows))}"
    print(f"{'':>8}step 1{last:>{max(1, min(WIDTH, len(losses)) - 6)}}")


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
