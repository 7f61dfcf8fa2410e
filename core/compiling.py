"""Compiling once: Numba compiles a loop at its first call on a machine and keeps the machine code on disk.

`announce_compiling` says so when it happens, so that nobody wonders at the first, slow call. `compiling_ahead` runs the
stages that need compiled code on a few words in a process of its own, while the caller reads documents: on a second
core the code is ready when it is wanted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from luthier.core.console import say

__all__ = ["announce_compiling", "compiling_ahead"]

TEXT = "The luthier's bench holds 12 planes, 3 gouges and a pot of glue. " * 40


def announce_compiling(numba: bool = True) -> None:
    """Say once in this process that code is being compiled, when that begins. `numba`: also code that Numba itself
    runs, not only that of tokenizers/machine_code.py, which does without Numba once it is compiled."""
    from luthier.tokenizers.machine_code import on_compile

    if _tell not in on_compile:
        on_compile.append(_tell)
    if numba and not _listening:
        from numba.core import event

        class Listener(event.Listener):
            def on_start(self, event: object) -> None:
                _tell()

            def on_end(self, event: object) -> None: ...

        _listening.append(Listener())
        event.register("numba:compile", _listening[0])


def _tell() -> None:
    if not _said.is_set():
        say("compiling (only the first time on this machine: the code is kept on disk)")
    _said.set()


_listening: list[object] = []
_said = threading.Event()


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Compile in another process while the body runs, unless the code is there already or there is one core only."""
    from luthier.tokenizers.scan import compiled

    child = None
    if not compiled() and (os.cpu_count() or 1) > 1:
        say("compiling in the background (only the first time on this machine: the code is kept on disk)")
        nowhere = subprocess.DEVNULL
        command = [sys.executable, "-m", "luthier.core.compiling"]
        child = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
        _said.set()
    try:
        yield
    finally:
        if child is not None:
            child.terminate()
            child.wait()


def _stages(folder: Path) -> None:
    """The stages that need compiled code, on a few words."""
    from luthier.core.data.encode import encode
    from luthier.core.training.tokenizer import TokenizerConfig, train_tokenizer
    from luthier.core.training.vectors import VectorsConfig, train_vectors

    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    tokenizer, shards = folder / "tokenizer", folder / "shards"
    train_tokenizer([folder / "text.txt"], tokenizer, TokenizerConfig(vocab_size=300))
    encode([folder / "text.txt"], tokenizer, shards)
    for method in ("word2vec", "glove"):
        config = VectorsConfig(method=method, vector_size=16, epochs=1, min_count=1)
        train_vectors([shards], folder / method, config, tokenizer=tokenizer)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        _stages(Path(place))
