"""What the kernels' tests share: numbers, the error budget, and the device on which Triton runs.

The budget is that of kernels/budget.py.

Tests marked `gpu` run Triton kernels: on a card, or in the interpreter under TRITON_INTERPRET=1, where
test_interpreter.py starts them; otherwise they are skipped.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from luthier.kernels.budget import FLOOR, violations
from luthier.kernels.launch import INTERPRETED


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _within_budget(
    ours: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], floor: float = FLOOR
) -> None:
    wrong = violations(ours, plain, inputs, floor)
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """A function of shape, seed and dtype that gives normal numbers."""
    return _random


@pytest.fixture
def within_budget() -> Callable[..., None]:
    """A function of ours, the plain formula and the inputs that asserts the budget."""
    return _within_budget


@pytest.fixture
def card() -> torch.device:
    """Where Triton kernels run: the card, or the CPU in the interpreter. Skips where there is neither."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here; test_interpreter.py runs this without one")
    return torch.device("cuda")


# ---------------------------------------------------------------- proofs that take long, on all cores


@pytest.fixture(scope="session")
def _proofs(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Any]]]:
    """What the selected tests marked `proof` will ask for, begun at once on all cores: attention, which takes longest,
    first, and other lengths, which find compiled what they need, last."""
    marked = [(item, mark) for item in request.session.items if (mark := item.get_closest_marker("proof"))]
    marked.sort(key=lambda pair: (2 * ("lengths" in pair[0].nodeid)) - ("attention" in pair[0].nodeid))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8), spawn) as pool:
        yield {item.nodeid: pool.submit(mark.args[0](**cast(Any, item).callspec.params)) for item, mark in marked}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """A function that waits for what this test's `proof` mark asked for and returns it."""
    pytest.importorskip("triton", reason="Triton is not installed: kernels were neither compiled nor interpreted")
    return request.getfixturevalue("_proofs")[request.node.nodeid].result
