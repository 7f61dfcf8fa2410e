"""Learning-rate schedules, as one closed formula of the step: nothing to store, nothing to resume wrongly.

    constant   ▁▇▇▇▇▇▇    after the warm-up, 1
    linear     ▁▇▆▅▃▂▁    a straight line to `floor`
    cosine     ▁▇▇▅▃▁▁    half a cosine to `floor` (Loshchilov & Hutter 2017, arXiv:1608.03983)
    wsd        ▁▇▇▇▇▄▁    warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): a line over the last `decay` share

WSD's stable part is the same whatever the number of steps, so Hu et al. go on from there with runs of other lengths.
Here warm-up and decay are shares of the steps: a run of more steps is another run from its first step.
"""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["Schedule", "learning_rate_factor"]

Schedule = Literal["constant", "linear", "cosine", "wsd"]


def learning_rate_factor(
    step: int, steps: int, *, schedule: Schedule, warmup: float, floor: float = 0.0, decay: float = 0.4
) -> float:
    """What the learning rate is multiplied by at `step` (from 0) of `steps`; `warmup` and `decay` are shares of them.

    >>> [round(learning_rate_factor(s, 8, schedule="linear", warmup=0.25), 2) for s in range(8)]
    [0.5, 1.0, 1.0, 0.83, 0.67, 0.5, 0.33, 0.17]
    """
    rising = max(1, round(warmup * steps)) if warmup > 0 else 0
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    start = rising if schedule != "wsd" else max(rising, round(steps * (1 - decay)))
    progress = max(0, step - start) / max(1, steps - start)
    if schedule == "cosine":
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
    return floor + (1 - floor) * (1 - progress)
