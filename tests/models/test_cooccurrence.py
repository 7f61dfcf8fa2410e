"""Co-occurrence counts against a dictionary: any memory, any number of threads, one side or both."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models import cooccurrence
from luthier.models.cooccurrence import count_pairs, count_pairs_plain, open_pairs
from luthier.models.vectors import VectorsError


def as_dictionary(pairs):
    return {(i, j): x for i, j, x in zip(*(a.tolist() for a in pairs), strict=True)}


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=1, max_size=6),
    st.integers(1, 5),
    st.booleans(),
    st.integers(1, 40),
    st.integers(0, 60),
)
def test_counts_equal_the_dictionary(documents, window, symmetric, block, hot):
    """Also where the text is cut into blocks and `hot` words lie in the dense block."""
    rows = np.array([row for d in documents for row in d], np.int32)
    offsets = np.cumsum([0, *map(len, documents)])
    plan = cooccurrence._Plan(block, 50, np.zeros((hot if block < len(rows) else 0,) * 2, np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_plan", lambda *_: plan)
        pairs = count_pairs(rows, offsets, 100, window=window, symmetric=symmetric, workers=block % 3 + 1)
    expected = count_pairs_plain(rows, offsets, window, symmetric)
    found = as_dictionary(pairs)
    assert found == pytest.approx(expected, rel=1e-6)
    assert sorted(found) == list(found)


def test_counts_of_a_worked_example():
    """Documents a b a and b, window 2: a and b stand side by side twice, so X_ab = X_ba = 2; the two a at distance 2
    count ½ from each side, X_aa = 1; the second document adds nothing."""
    rows, offsets = np.array([0, 1, 0, 1]), np.array([0, 3, 4])
    assert as_dictionary(count_pairs(rows, offsets, 2, window=2)) == {(0, 0): 1, (0, 1): 2, (1, 0): 2}
    one_side = count_pairs(rows, offsets, 2, window=2, symmetric=False)
    assert as_dictionary(one_side) == {(0, 0): 0.5, (0, 1): 1, (1, 0): 1}


def test_any_memory_and_number_of_threads_gives_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.minimum(rng.geometric(0.004, 60_000) - 1, 1999).astype(np.int32)
    offsets = np.array([0, 7, 7, 20_000, 60_000])
    expected = count_pairs(rows, offsets, 2000, window=8)
    for memory in (600_000, 1_000_000, 1 << 30):  # many blocks, some, one
        for workers in (1, 2):
            found = count_pairs(rows, offsets, 2000, window=8, workers=workers, max_memory=memory, folder=tmp_path)
            assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
            assert isinstance(found.x, np.memmap)
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.i", "pairs.j", "pairs.x"}
    assert all(a.tobytes() == b.tobytes() for a, b in zip(open_pairs(tmp_path), expected, strict=True))


def test_a_text_without_pairs_and_too_little_memory():
    for rows in (np.arange(3), np.zeros(0, np.int32)):
        assert len(count_pairs(rows, np.arange(len(rows) + 1), 3).x) == 0
    with pytest.raises(VectorsError, match="max_memory = 1,000 bytes: 100 words and 1 threads need 12,800"):
        count_pairs(np.zeros(1, int), np.array([0, 1]), 100, max_memory=1000)
