"""What all tests share: real data, memory that shows when it was read before it was written, a small demo."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

# The same numbers at every run; LUTHIER_TEST_SEED=1, 2, … gives others, and lets hypothesis look where it has not been.
SEED = os.environ.get("LUTHIER_TEST_SEED", "")
hypothesis.settings.register_profile("luthier", deadline=None, derandomize=not SEED)
hypothesis.settings.load_profile("luthier")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes with two threads each would wait for one another

NO_DATA = "LUTHIER_TEST_DATA is not set: the folder of real texts, documents and vocabularies"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real test data; a test that asks for it is skipped where there is none."""
    folder = os.environ.get("LUTHIER_TEST_DATA")
    if not folder:
        pytest.skip(NO_DATA)
    return Path(folder)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or left in the user's cache of vocabularies."""
    os.environ["LUTHIER_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random numbers follow from the seed, not from which tests ran before."""
    number = int(SEED or 0)
    random.seed(number)
    np.random.seed(number)
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(number)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`torch.empty` gives NaN: whoever reads what nobody wrote cannot get away with memory that happens to be zero."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "empty"):
        for name in ("empty", "empty_like"):
            monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    yield


def _poisoned(make: Any) -> Any:
    def poisoned(*args: Any, **kwargs: Any) -> Any:
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point() and not tensor.is_meta:
            tensor.detach().fill_(float("nan"))
        return tensor

    return poisoned


# A sitecustomize module that takes away what a Mac does not have: Triton, and glibc under its name.
HIDDEN = """
import ctypes, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "triton" or name.startswith("triton."):
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by a test)", name=name)

sys.meta_path.insert(0, Hidden())
real = ctypes.CDLL.__init__

def refuse(self, name=None, *args, **kwargs):
    if name and "libc.so" in str(name):
        raise OSError(f"{name}: cannot open shared object file (hidden by a test)")
    real(self, name, *args, **kwargs)

ctypes.CDLL.__init__ = refuse
"""
# What makes the demo small: the whole walk in a minute, numbers of no worth.
SMALL = {
    "pretrain": ("steps = 8",),
    "finetune": ("epochs = 0.2",),
    "evaluate": ("questions_per_set = 8", "resamples = 200"),
}


def _shrink(settings: Path) -> None:
    """Overwrite the settings in a luthier.toml that cost time."""
    text = settings.read_text(encoding="utf-8")
    for table, lines in SMALL.items():
        for line in lines:
            text = re.sub(rf"(?m)^{line.split()[0]} = .*\n", "", text)
        block = f"[{table}]\n" + "\n".join(lines) + "\n"
        text = re.sub(rf"(?m)^\[{table}\]\n", block, text) if f"[{table}]" in text else f"{text}\n{block}"
    settings.write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def shrink() -> Callable[[Path], None]:
    """A function that makes the run of a luthier.toml short."""
    return _shrink


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo's project folder, made with few steps and without Triton and glibc, and what the run printed."""
    from luthier.examples import sample_company

    root = tmp_path_factory.mktemp("demo")
    (root / "hidden").mkdir()
    (root / "hidden" / "sitecustomize.py").write_text(HIDDEN)
    shutil.copytree(sample_company(), root / "luthier-demo", ignore=shutil.ignore_patterns("sources"))
    _shrink(root / "luthier-demo" / "luthier.toml")
    environment = {**os.environ, "PYTHONPATH": str(root / "hidden"), "NO_COLOR": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", "luthier.scripts.cli", "demo"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return root / "luthier-demo", done


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers (`-n 2 --dist loadgroup`) a file stays with one of them, and so do all tests of the small
    demo, which is run once, and the kernels' proofs, which are begun together."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = "demo" if "small_demo" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group("kernels" if item.path.parent.name == "kernels" else group))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests were skipped for want of real data, so that a green run without it is not mistaken."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if NO_DATA in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: {NO_DATA}")
