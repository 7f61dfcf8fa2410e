"""GloVe killed without warning and started again: the bits of a run that was never stopped, and what is left behind."""

import os
import signal
import subprocess
import sys

import numpy as np

from luthier.core.training.vectors import VectorsConfig, train_vectors
from luthier.models import glove

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
SETTINGS = {"method": "glove", "vector_size": 12, "min_count": 1, "iterations": 4, "max_memory": 0.001}


def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(glove, "ROUND", 2000)  # the sum of a loss has its last digit from where it is cut
    rng = np.random.default_rng(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n}" for n in np.minimum(rng.geometric(0.02, 4000), 300)))
    train_vectors([text], tmp_path / "whole", VectorsConfig(**SETTINGS))
    arguments = [sys.executable, "-c", KILLED, str(text), str(tmp_path / "again")]
    killed = subprocess.run([*arguments, "8", repr(SETTINGS)], env=os.environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "again").exists()
    assert (tmp_path / ".again.building" / "glove" / "progress.npz").is_file()
    train_vectors([text], tmp_path / "again", VectorsConfig(**SETTINGS))
    for name in ("vectors.safetensors", "vocabulary.jsonl", "metrics.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "again" / "glove").exists()
