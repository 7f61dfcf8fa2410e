"""A base may be a model on a hub: downloaded only when named so, and where that fails the message says it."""

import sys
import types
from pathlib import Path

import pytest

from luthier.core.training.finetune import finetune
from luthier.core.training.pretrain import pretrain
from luthier.models.checkpoints import CheckpointError


@pytest.fixture
def no_network(monkeypatch):
    asked = []

    def download(name, **_):
        asked.append(name)
        raise OSError("no network here")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=download))
    return asked


@pytest.mark.parametrize("stage", ["finetune", "pretrain"])
def test_a_hub_that_cannot_be_reached(stage, no_network, tmp_path):
    with pytest.raises(CheckpointError, match="hub:someone/small could not be downloaded: OSError: no network here"):
        if stage == "finetune":
            finetune(Path("hub:someone/small"), [tmp_path], tmp_path / "out")
        else:
            pretrain(tmp_path, tmp_path / "out", base=Path("hub:someone/small"))
    assert no_network == ["someone/small"]
    assert not (tmp_path / "out").exists()
