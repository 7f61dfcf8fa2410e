"""What a person sees while a stage works: lines and live bars on stderr, results on stdout.

Bars are drawn only on a terminal. Elsewhere (a log file, CI) a long step prints one line every ten seconds, so that a
reader of the log knows it is alive.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["counted", "duration", "progress", "say"]

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: float | None, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show how far a step is. Yields `advance(amount=1, note="")`; `total` None means that the end is not known."""
    if sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _lines(title, total, unit)


@contextmanager
def _bar(title: str, total: float | None, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%" if total else "{task.completed:,.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"{title} [{unit}]" if unit else title, total=total, note="")

        def advance(amount: float = 1, note: str = "") -> None:
            bars.update(task, advance=amount)
            if note:
                bars.update(task, note=note)

        yield advance


def _lines(title: str, total: float | None, unit: str) -> Callable[..., None]:
    done, last = 0.0, time.monotonic()

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            of = f" of {total:,.0f}" if total else ""
            say("  ".join(part for part in (f"{title}: {done:,.0f}{of} {unit}".rstrip(), note) if part))

    return advance


def counted(number: float, noun: str) -> str:
    """`1 document`, `12,345 documents`, `2.5 epochs`."""
    shown = f"{number:g}" if isinstance(number, float) else f"{number:,}"
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`12 s`, `3 min 4 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
