"""Loops are shared among PyTorch's own threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from luthier.kernels import processor
from luthier.kernels.openmp import in_shares, openmp
from luthier.kernels.rms_norm import add_rms_norm

there = pytest.mark.skipif(openmp() is None, reason="this PyTorch has another OpenMP")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@there
@pytest.mark.parametrize(("count", "parts"), [(0, [(0, 0)]), (64, [(0, 64)]), (130, [(0, 128), (128, 130)])])
def test_each_thread_gets_whole_groups(two_threads: None, count: int, parts: list[tuple[int, int]]) -> None:
    taken: dict[int, tuple[int, int]] = {}
    in_shares(count, 64, lambda begin, end, thread: taken.update({thread: (begin, end)}))
    assert [taken[n] for n in sorted(taken)] == parts


@there
def test_threads_are_two_at_a_time(two_threads: None) -> None:
    """Each waits for the other inside of its share."""
    barrier = threading.Barrier(2, timeout=60)
    in_shares(2, 1, lambda *_: barrier.wait())


@there
@pytest.mark.parametrize("thread", [0, 1])
def test_what_goes_wrong_in_a_share_is_said(two_threads: None, thread: int) -> None:
    def work(begin: int, end: int, here: int) -> None:
        if here == thread:
            raise ArithmeticError("in a share")

    with pytest.raises(ArithmeticError, match="in a share"):
        in_shares(2, 1, work)


@there
def test_a_share_that_was_not_done_is_no_result(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Ctrl-C comes when a share begins: what it raises there is dropped by ctypes."""
    monkeypatch.setattr(openmp(), "GOMP_parallel", lambda share, *_: None)
    with pytest.raises(KeyboardInterrupt):
        in_shares(2, 1, lambda *_: None)


@pytest.mark.parametrize("device", ["meta"])
def test_another_default_device(device: str) -> None:
    with torch.device(device):
        x = torch.ones(300, 128, device="cpu")
        y, h = add_rms_norm(x, x, torch.ones(128, device="cpu"))
    assert y.device.type == h.device.type == "cpu"


def test_one_thread_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    taken: list[tuple[int, int, int]] = []
    in_shares(130, 64, lambda *given: taken.append(given))
    assert taken == [(0, 130, 0)]


@there
def test_sums_over_rows_are_those_of_all_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("luthier.kernels.row_loops", reason="Numba is not installed")
    monkeypatch.setattr(processor, "FEWEST", 0)
    monkeypatch.setattr(processor, "FEWEST_TO_SHARE", 0)
    given = [torch.randn(999, 24, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in range(2)]
    weight = torch.ones(24, requires_grad=True)

    def slopes(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, residual = (x.to(dtype) for x in given)
        y, h = add_rms_norm(x, residual, weight.to(dtype))
        return torch.autograd.grad((y.sin() + h.cos()).sum(), [*given, weight])

    for found, right in zip(slopes(torch.float32), slopes(torch.float64), strict=True):
        torch.testing.assert_close(found, right.float(), atol=2e-5, rtol=2e-5)


OTHERS = """
import {name}, torch
from pathlib import Path
from luthier.kernels.openmp import openmp
import ctypes
address = ctypes.cast(openmp().GOMP_parallel, ctypes.c_void_p).value
for line in Path("/proc/self/maps").read_text().splitlines():
    begin, end = (int(x, 16) for x in line.split()[0].split("-"))
    if begin <= address < end:
        print(line.split()[-1])
"""


@there
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_not_that_of_another_package() -> None:
    """sentencepiece brings an OpenMP of its own, whose threads would share the cores with PyTorch's."""
    name = "sentencepiece"
    folder = Path(pytest.importorskip(name).__file__ or "").parent
    if not list(folder.parent.glob("sentencepiece.libs/libgomp*")):
        pytest.skip("this sentencepiece has none")
    done = subprocess.run(
        [sys.executable, "-c", OTHERS.format(name=name)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() and "sentencepiece" not in done.stdout
