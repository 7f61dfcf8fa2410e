"""PyTorch's own threads for loops that Numba compiled.

Between two of PyTorch's operations GNU's OpenMP waits on the other core without pause, and a thread of Python's would
have to share that core with it (tiled attention, 2 × 512 tokens, forward: 2.6 ms by OpenMP's, 5.6 by one of Python's,
5.3 alone). So the threads are those of the OpenMP that PyTorch calls: for what has a compiled function for one thread's
share (`on_all_threads`, 3 µs), and for what has none (`in_shares`): there each thread enters Python for a moment to
begin a loop that runs without Python's lock, which takes 60 µs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["in_shares", "on_all_threads", "openmp", "thread_functions"]

_Share = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def openmp() -> Any:
    """The library, or None. Other packages bring theirs, whose threads would be in the way of PyTorch's."""
    try:  # what PyTorch is linked to is found through it
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        library.GOMP_parallel.argtypes = [_Share, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        return library if library.omp_get_thread_num and library.omp_get_num_threads else None
    except (OSError, AttributeError):
        return None


def thread_functions() -> tuple[int, ...]:
    """The addresses of what tells a thread its number and how many there are."""
    asked = (openmp().omp_get_thread_num, openmp().omp_get_num_threads)
    return tuple(ctypes.cast(one, ctypes.c_void_p).value or 0 for one in asked)


def on_all_threads(function: int, data: npt.NDArray[np.int64]) -> None:
    """Call the function at this address with the data's address on each of PyTorch's threads."""
    openmp().GOMP_parallel(_Share(function), data.ctypes.data, torch.get_num_threads(), 0)


def in_shares(count: int, each: int, work: Callable[[int, int, int], object]) -> None:
    """Call work(begin, end, thread) on each of PyTorch's threads with its part of `count` things, whole groups of
    `each`; with all of them where there is one thread, or no OpenMP."""
    library = openmp() if torch.get_num_threads() > 1 else None
    if library is None or count <= each:
        work(0, count, 0)
        return
    failed: list[BaseException] = []
    done: list[int] = []

    def share(_: object) -> None:
        try:
            thread, threads = library.omp_get_thread_num(), library.omp_get_num_threads()
            size = -(-count // each // threads) * each
            begin, end = min(count, thread * size), min(count, (thread + 1) * size)
            work(begin, end, thread)
            done.append(end - begin)
        except BaseException as error:  # raised below: nobody else would see it here
            failed.append(error)

    library.GOMP_parallel(_Share(share), None, torch.get_num_threads(), 0)
    if failed:
        raise failed[0]
    if sum(done) < count:  # a signal came before the first line above, and ctypes dropped what it raised
        raise KeyboardInterrupt
