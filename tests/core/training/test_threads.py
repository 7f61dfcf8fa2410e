"""How many threads train: looked at once, said, kept by the run."""

import json

import numpy as np
import pytest
import torch

from luthier.core.data.shards import write_shards
from luthier.core.training import execution
from luthier.core.training.pretrain import PretrainConfig, pretrain


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """As on a machine of two cores where nobody says how many threads; afterwards as many as before."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(execution.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    execution.faster_threads.cache_clear()
    yield
    execution.faster_threads.cache_clear()
    torch.set_num_threads(before)


def speeds(monkeypatch, one, two):
    found = {1: one, 2: two}
    monkeypatch.setattr(execution, "matmul_speed", lambda *_, **__: found[torch.get_num_threads()])


@pytest.mark.parametrize(("two", "taken"), [(190e9, 2), (119e9, 1), (70e9, 1)])
def test_all_cores_only_if_they_beat_one(two, taken, monkeypatch, capsys):
    speeds(monkeypatch, 100e9, two)
    execution.use_machine(0)
    assert torch.get_num_threads() == taken
    said = capsys.readouterr().err
    assert f"threads      {taken}: a product takes {two / 1e9:.0f} GFLOP/s with 2, 100 with one" in said
    assert ("--threads" in said) == (taken == 1)
    execution.use_machine(0)
    assert capsys.readouterr().err == ""  # looked at once
    execution.use_machine(2)
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    execution.use_machine(0)
    assert torch.get_num_threads() == 1


def test_a_run_that_is_begun_again_takes_its_first_choice(tmp_path, monkeypatch):
    """Killed before its first checkpoint, on a machine that is busier now."""
    documents = [np.arange(90) % 60 for _ in range(9)]
    write_shards(tmp_path / "shards", documents[1:], documents[:1], vocab_size=64, eos_id=63)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = PretrainConfig(**size, num_key_value_heads=1, context=32, batch_size=2, steps=2)  # pyright: ignore[reportArgumentType]
    building = tmp_path / ".model.building"

    def run(two, stopped):
        speeds(monkeypatch, 100e9, two)
        execution.faster_threads.cache_clear()
        with monkeypatch.context() as stop:
            if stopped:
                stop.setattr("luthier.core.training.loop.fit", lambda **_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    pretrain(tmp_path / "shards", tmp_path / "model", config)
            else:
                pretrain(tmp_path / "shards", tmp_path / "model", config)
        return torch.get_num_threads()

    assert run(190e9, stopped=True) == 2
    assert json.loads((building / "run.json").read_text())["threads"] == 2
    assert run(70e9, stopped=False) == 2
