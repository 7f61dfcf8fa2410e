"""PyTorch's own threads for loops that Numba compiled.

Between two of PyTorch's operations GNU's OpenMP waits on the other core without pause, and a thread of Python's would
have to share that core with it (tiled attention, 2 × 512 tokens, forward: 2.6 ms by OpenMP's, 5.6 by one of Python's,
5.3 alone). So a loop is given to the OpenMP that PyTorch brought with it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["OpenMP", "on_all_threads", "openmp"]


class OpenMP(NamedTuple):
    """How it runs a function on its threads, and the addresses of what tells a thread its number and theirs."""

    run: Any
    thread_number: int
    thread_count: int


@cache
def openmp() -> OpenMP | None:
    """PyTorch's, where that is GNU's."""
    torch.get_num_threads()  # which loads it
    try:
        path = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line)
        library = ctypes.CDLL(path)
        run = library.GOMP_parallel
    except (OSError, StopIteration, AttributeError):
        return None
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    asked = (library.omp_get_thread_num, library.omp_get_num_threads)
    return OpenMP(run, *(ctypes.cast(one, ctypes.c_void_p).value or 0 for one in asked))


def on_all_threads(function: int, data: npt.NDArray[np.int64]) -> None:
    """Call the function at this address with the data's address on each of PyTorch's threads."""
    found = openmp()
    assert found is not None, "asked before"
    found.run(function, data.ctypes.data, torch.get_num_threads(), 0)
