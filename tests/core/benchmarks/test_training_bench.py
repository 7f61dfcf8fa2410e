"""The row of time to a quality says who reached it, and is equal only where ours did."""

from pathlib import Path

import pytest

from luthier.core.benchmarks import training


@pytest.mark.parametrize(("ours", "equal"), [(1.83, True), (1.9, False)])
def test_a_peer_that_does_not_reach_the_loss_is_named(monkeypatch, ours, equal):
    monkeypatch.setattr(training, "_recipe", lambda text, most: (40.0, ours))
    monkeypatch.setattr(training, "_nanogpt", lambda folder, text, most: (90.0, 1.886))
    (row,) = training._quality(Path("text"), "nanogpt", 1, 100.0)
    assert "nanoGPT 1.886, not reached" in row["case"] and ("ours 1.830;" in row["case"]) == equal
    assert row["equal"] == equal and row["ratio"] == 2.25
