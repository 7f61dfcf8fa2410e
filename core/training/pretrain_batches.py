"""Which windows of text are read at which step, how many steps there are, and what is held out.

Two kinds of text are mixed. The company's own documents are few; a model that sees nothing else learns them by heart
and no language. General text beside them (document number −1 in the shards) teaches the rest. `general_share` says
what part of all windows is general text, however much of it there is: a share of 0.5 with 40,000 tokens of one's own
and 500,000 others runs five times over one's own while it sees 200,000 of the others. Up to about four passes, text
repeated is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264).

Which window stands at a position is a closed formula (batches.py), so the step alone says what is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.training.pretrain_config import VALIDATION_TOKENS

if TYPE_CHECKING:
    from luthier.core.data.shards import Shards
    from luthier.core.training.batches import Batch, Mixture, Windows
    from luthier.core.training.pretrain_config import PretrainConfig

__all__ = ["held_out_batches", "mixture", "sources", "steps_of"]


def sources(shards: Shards, *, context: int, seed: int, number: int = 0) -> tuple[Windows, Windows | None]:
    """Windows over one's own text and over general text; where there is only one kind, that is the first."""
    import numpy as np

    from luthier.core.training.batches import Windows

    def over(chosen: np.ndarray, kind: int) -> Windows:
        return Windows(
            shards.tokens,
            shards.offsets,
            shards.names,
            chosen,
            context=context,
            seed=seed,
            number=number + kind,
            folder=shards.folder,
            lines=shards.documents,
        )

    own, general = np.flatnonzero(shards.documents >= 0), np.flatnonzero(shards.documents < 0)
    if not len(own):
        return over(general, 0), None
    return over(own, 0), over(general, 1) if len(general) else None


def mixture(shards: list[Shards], config: PretrainConfig) -> Mixture:
    """All kinds of text of a run with their shares: of each folder one's own, and general text."""
    from luthier.core.training.batches import Mixture

    opened = [sources(one, context=config.context, seed=config.seed, number=2 * i) for i, one in enumerate(shards)]
    totals = config.weights or [sum(w.total for w in both if w is not None) for both in opened]
    parts: list[tuple[Windows, float]] = []
    for (own, general), weight in zip(opened, totals, strict=True):
        share = config.general_share if general is not None else 0.0
        parts += [(own, weight * (1 - share))] + ([(general, weight * share)] if general is not None and share else [])
    return Mixture(parts)


def steps_of(config: PretrainConfig, text: Mixture) -> int:
    if config.steps:
        return config.steps
    if config.tokens:
        return max(1, -(-config.tokens // (config.batch_size * config.context)))
    own, share = text.parts[0]
    return max(1, round(config.epochs * len(own) / share / config.batch_size))


def held_out_batches(held_out: list[Shards], config: PretrainConfig) -> list[Batch]:
    """Held-out windows, the same at every measurement."""
    from luthier.core.training.batches import pack

    tokens = VALIDATION_TOKENS if config.validation_tokens is None else config.validation_tokens
    filled = [shards for shards in held_out if len(shards.tokens) and tokens]
    windows = []
    for shards in filled:
        own, _ = sources(shards, context=config.context, seed=config.seed)
        most = max(1, tokens // config.context // len(filled))
        windows += [own[i] for i in range(min(len(own), most))]
    return [pack(windows[i : i + 16], config.context, 0) for i in range(0, len(windows), 16)]
