"""GloVe killed without warning and started again: the bits of a run that was never stopped, and what is left behind."""

import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from luthier.core.training import glove as stage
from luthier.core.training.vectors import VectorsConfig, train_vectors
from luthier.models import glove
from luthier.models.cooccurrence import Cooccurrences

# Stores after every round of 2,000 pairs; dies, as by kill -9, in the fourth time of storing, before the file is there.
KILLED = """
import os, signal, sys
from pathlib import Path
from luthier.core.training import glove as stage
from luthier.core.training.vectors import VectorsConfig, train_vectors
from luthier.models import glove
stage.EVERY, glove.ROUND = 0.0, 2000
whole, times = os.fsync, []
def fsync(file):
    whole(file)
    times.append(file)
    if len(times) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
train_vectors([Path(sys.argv[1])], Path(sys.argv[2]), VectorsConfig(**eval(sys.argv[4])))
"""
SETTINGS = {"method": "glove", "vector_size": 12, "min_count": 1, "iterations": 4, "max_memory": 0.0005}


def kill(text, folder):
    command = [sys.executable, "-c", KILLED, str(text), str(folder), "8", repr(SETTINGS)]
    killed = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(glove, "ROUND", 2000)  # the sum of a loss has its last digit from where it is cut
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n}" for n in np.minimum(rng.geometric(0.02, 4000), 300)))
    train_vectors([text], tmp_path / "whole", VectorsConfig(**SETTINGS))
    kill(text, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert (tmp_path / ".again.building" / "glove" / "progress.npz").is_file()
    train_vectors([text], tmp_path / "again", VectorsConfig(**SETTINGS))
    for name in ("vectors.safetensors", "vocabulary.jsonl", "metrics.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "again" / "glove").exists()


@pytest.mark.parametrize("order", [None, "tiles"])
def test_a_progress_in_another_order_is_not_gone_on_with(tmp_path, monkeypatch, capsys, order):
    """As killed before there was one order by chance: the counts stay, training begins anew and says so."""
    monkeypatch.setattr(glove, "ROUND", 2000)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n}" for n in np.minimum(np.random.default_rng(0).geometric(0.02, 4000), 300)))
    train_vectors([text], tmp_path / "whole", VectorsConfig(**SETTINGS))
    kill(text, tmp_path / "again")
    path = tmp_path / ".again.building" / "glove" / "progress.npz"
    with np.load(path) as stored:
        assert str(stored["order"]) == stage.ORDER
        former: dict[str, Any] = {name: stored[name] for name in stored if name != "order"}
    np.savez(path, **former, **({"order": order} if order else {}))
    monkeypatch.setattr("luthier.models.cooccurrence.count_pairs", lambda *_, **__: pytest.fail("counted twice"))
    capsys.readouterr()
    train_vectors([text], tmp_path / "again", VectorsConfig(**SETTINGS))
    told = capsys.readouterr().err
    assert "training anew from the counts" in told and "going on" not in told
    for name in ("vectors.safetensors", "metrics.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_order_has_another_name():
    """Where this fails, the order has changed: give ORDER another name, then change what is expected here."""
    one = np.arange(100_000, dtype=np.int32)
    lined = glove._in_order(
        Cooccurrences(one, one, np.ones(len(one), np.float32)), 10, 0.75, np.random.default_rng(0), None
    )
    assert (stage.ORDER, lined.i[:4].tolist()) == ("by chance, dealt into parts of 65,536", [24874, 93099, 3985, 64939])
