"""A step of a training run in the terminal: where its batch comes from, and, replayed, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.core.training.replay import Replayed
    from luthier.core.training.tracing import Traced

__all__ = ["show_replayed", "show_step"]

SHOWN = 60  # characters of a stretch
BARS = 40


def show_step(folder: Path, step: int) -> None:
    """Print what metrics.jsonl says of a step, and the file and page of everything in its batch."""
    from luthier.core.training.replay import open_run
    from luthier.core.training.tracing import trace

    run = open_run(folder)
    row = run.row(step)
    number = run.batch_number(step)
    print(f"step {step} of {folder}: batch {number}, loss {row['loss']:.4f}, gradient norm {row['grad_norm']:.3f}\n")
    _sources(trace(run, number))


def show_replayed(found: Replayed) -> None:
    """Print a replayed step."""
    recorded = found.recorded
    same = "the same to the bit" if found.exact else "DIFFERENT"
    print(f"step {found.step}: batch {found.batch}, made again from the state after step {found.started_at}")
    print(f"loss           {found.loss!r}, recorded {recorded['loss']!r}")
    print(f"gradient norm  {found.grad_norm!r}, recorded {recorded['grad_norm']!r}: {same}\n")
    _sources(found.sources)
    print("\nthe dearest tokens, in nats:")
    for token in found.dearest:
        print(f"{token.loss:8.2f}  {token.text!r}  row {token.row}, place {token.place}")
    print("\nnorm of the gradient by layer:")
    most = max(found.gradients.values(), default=1.0) or 1.0
    for layer, norm in found.gradients.items():
        print(f"{layer:<16}{norm:10.4f}  {'█' * round(BARS * norm / most)}")


def _sources(traced: Sequence[Traced]) -> None:
    """One line a stretch: row, document, page, place, and how it begins."""
    for t in traced:
        page = ""
        if t.pages:
            page = f", page {t.pages[0]}" + (f" to {t.pages[1]}" if t.pages[1] != t.pages[0] else "")
        where = f"row {t.row:<3}" if t.row >= 0 else ""
        place = f", tokens {t.first:,} to {t.first + t.tokens - 1:,}" if t.row >= 0 else ""
        text = " ".join(t.text.split())
        shown = f"  “{text[:SHOWN]}{'…' if len(text) > SHOWN else ''}”" if text else ""
        print(f"{where}{t.name}{page}{place}{shown}")
