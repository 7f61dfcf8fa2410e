"""The Triton kernels' values and gradients without a card: their `gpu` tests in Triton's interpreter.

Whether Triton interprets or compiles is settled when a kernel is decorated, so they run in processes of their own: two,
for importing takes as long as half a dozen of these files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import pytest

HERE = Path(__file__).parent
FILES = sorted(
    p
    for p in HERE.glob("test_*.py")
    if p.name != Path(__file__).name and "@pytest.mark.gpu" in p.read_text(encoding="utf-8")
)
GROUPS = {
    "attention and losses": [p for p in FILES if "attention" in p.name or "entropy" in p.name],
    "all others": [p for p in FILES if "attention" not in p.name and "entropy" not in p.name],
}


def in_the_interpreter(group: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *map(str, GROUPS[group])]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return partial(subprocess.run, command, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter already")
@pytest.mark.proof.with_args(in_the_interpreter)
@pytest.mark.parametrize("group", GROUPS)
def test_in_the_interpreter(group: str, proof: Callable[[], subprocess.CompletedProcess[str]]) -> None:
    triton = pytest.importorskip("triton", reason="Triton is not installed: kernels were not tested")
    if triton.__version__.startswith("3.6.") and tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 needs numpy below 2.4: it makes a number of an array of one")
    done = proof()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout, done.stdout[-1000:]
