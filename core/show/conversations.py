"""A training example as the model meets it: every token in order, and which of them it is trained to say.

On a terminal the trained stretch is green and the rest is dim; elsewhere it stands between ⟦ and ⟧.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["show_example"]

OPEN, CLOSE = "⟦", "⟧"


def show_example(tokenizer: Tokenizer, ids: Any, trained: Any, console: Console | None = None) -> None:
    """Print one example to stdout with its trained stretches marked, and how many tokens that is."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    ids, trained = np.asarray(ids), np.asarray(trained, bool)
    out = Text()
    for start, end in stretches(trained):
        text = tokenizer.decode(ids[start:end])
        if trained[start]:
            out.append(text if console.is_terminal else f"{OPEN}{text}{CLOSE}", style="bold green")
        else:
            out.append(text, style="dim")
    console.print(out, soft_wrap=True)
    how = "green" if console.is_terminal else f"{OPEN}…{CLOSE}"
    console.print(f"{len(ids):,} tokens, {int(trained.sum()):,} of them trained ({how})", markup=False, soft_wrap=True)


def stretches(trained: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs [start, end) of equal marks."""
    if not len(trained):
        return []
    edges = [0, *(np.flatnonzero(np.diff(trained.astype(np.int8))) + 1).tolist(), len(trained)]
    return list(pairwise(edges))
