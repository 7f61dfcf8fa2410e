"""New rows of an embedding from vectors: where rows are a linear map of vectors, the map is found and carried on."""

import numpy as np
import torch

from luthier.core.training.embedding import start_new_rows
from luthier.models.vectors import Vectors


def test_new_rows_follow_the_map_of_the_old_ones():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 8)).astype(np.float32)
    ids = rng.permutation(80)[:60]
    rows = table.astype(np.float64) @ rng.normal(size=(8, 16)) * 0.02 + 0.1
    weight = torch.zeros(80, 16)
    weight[torch.from_numpy(ids)] = torch.from_numpy(rows).float()
    new = ids[50:]
    weight[torch.from_numpy(new)] = 7.0
    before = weight.clone()
    v = Vectors(table, [f"t{n}" for n in range(60)], ids, np.ones(60, int), None, "byte-level")
    assert start_new_rows(weight, v, [*new.tolist(), 10_000]) == 10
    others = np.setdiff1d(np.arange(80), new)
    assert torch.equal(weight[torch.from_numpy(others)], before[torch.from_numpy(others)])
    found, expected = weight[torch.from_numpy(new)].numpy() - 0.1, rows[50:] - 0.1
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.95
    assert 0.7 < found.std() / expected.std() < 1.4


def test_without_vectors_on_either_side_nothing_changes():
    weight = torch.ones(4, 2)
    v = Vectors(np.ones((2, 3), np.float32), ["a", "b"], np.array([0, 1]), np.ones(2, int))
    assert start_new_rows(weight, v, [2, 3]) == 0
    assert start_new_rows(weight, v, [0, 1]) == 0
    assert torch.equal(weight, torch.ones(4, 2))
