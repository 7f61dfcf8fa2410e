"""What is printed counts in the singular and the plural."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.console import counted


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 epochs"), (1, "1 epoch"), (1.0, "1 epoch"), (2.5, "2.5 epochs"), (10.0, "10 epochs"),
        (12345, "12,345 epochs"), (np.int64(1_234_567), "1,234,567 epochs"),
    ],
)  # fmt: skip
def test_one_and_many(number: float, said: str) -> None:
    assert counted(number, "epoch") == said
