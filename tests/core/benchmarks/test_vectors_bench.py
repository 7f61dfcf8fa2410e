"""The bench of vectors on a small made text: every group gives rows, wrong names are refused."""

import numpy as np
import pytest

from luthier.core.benchmarks import vectors as bench
from luthier.core.errors import ConfigError


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SIZE", 16)
    monkeypatch.setattr(bench, "EPOCHS", 1)
    rng = np.random.default_rng(0)
    words = [f"w{a}x" for a in "abcdefghijklmnop" for a in (a + b for b in "abcdefghijklmnop")]
    drawn = np.minimum(rng.geometric(0.01, 20_000) - 1, len(words) - 1)
    (tmp_path / "text.txt").write_text(" ".join(words[n] for n in drawn))
    pairs = "".join(f"{words[a]}\t{words[a + 1]}\t{a % 7}\n" for a in range(100))
    (tmp_path / "pairs.tsv").write_text(pairs)
    return tmp_path


def test_every_group_but_the_slow_ones_gives_rows(text):
    rows = bench.run(
        text=text / "text.txt", only=("glove", "quality", "nearest"), sets=(text / "pairs.tsv",), repeats=2
    )
    assert {row["group"] for row in rows} == {"glove", "quality", "nearest"}
    assert all(row["ours"] is not None for row in rows)
    quality = next(row for row in rows if row["group"] == "quality")
    assert "pairs similarity, 2 seeds, difference" in quality["case"]
    assert all(row["equal"] for row in rows if row["group"] != "quality")


def test_wrong_names_are_refused():
    with pytest.raises(ConfigError, match="no such group"):
        bench.run(only=("sped",))
    with pytest.raises(ConfigError, match="expected NAME=PATH"):
        bench.run(peer=("glove=/nowhere",))
