"""µP as a setting of pretraining: the run is the one that models/mup.py makes in Python, is told, kept and gone on with
bit by bit, and its folder is like any other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.data.shards import write_shards
from luthier.core.errors import ArtifactError, ConfigError
from luthier.core.training import loop
from luthier.core.training.optimizers import make_optimizers
from luthier.core.training.pretrain import Given, PretrainConfig, prepare, pretrain
from luthier.core.training.pretrain_config import model_config
from luthier.models.checkpoints import load_model
from luthier.models.mup import init_by_width
from luthier.models.transformer import Transformer

WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "context": 16,
    "batch_size": 4,
    "threads": 1,
    "learning_rate": 1e-2,
    "mup_base_width": 16,
    "steps": 12,
}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    documents = [(random.integers(2, 40) + np.arange(30)) % 38 + 2 for _ in range(12)]
    return write_shards(tmp_path / "shards", documents[:-2], documents[-2:], vocab_size=40, eos_id=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_run_is_the_one_made_in_python(shards: Path, tmp_path: Path, optimizer: Any, capsys) -> None:
    config = PretrainConfig(**WIDE, optimizer=optimizer)
    pretrain(shards, tmp_path / "model", config)
    told = capsys.readouterr().err
    assert "4 × the width 16" in told and "last norm 1 / 4" in told
    assert f"layers' matrices {'0.0025' if optimizer == 'adamw' else '0.005'}, last norm 0.0025" in told
    stored = json.loads((tmp_path / "model" / "run.json").read_text())["config"]
    assert stored["mup_base_width"] == 16

    made = prepare(config, Given((shards,))).arguments
    model = Transformer(load_model(tmp_path / "model").config, device="meta").to_empty(device="cpu")
    init_by_width(model, 16, torch.Generator().manual_seed(0))
    optimizers = make_optimizers(model, name=optimizer, lr=1e-2, mup_base_width=16)
    loop.fit(**{**made, "model": model, "optimizers": optimizers}, folder=tmp_path, config=config)
    ours = dict(model.named_parameters())
    for name, weight in load_model(tmp_path / "model").named_parameters():
        assert torch.equal(weight, ours[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("base_width", [16, 256])
@pytest.mark.parametrize("tied", [True, False])
def test_the_rates_told_are_those_of_the_groups(
    shards: Path, tmp_path: Path, optimizer: Any, base_width: int, tied: bool, monkeypatch, capsys
) -> None:
    """Also where the model is narrower than the base, and the rates of head and last norm are the largest."""
    shape = lambda config, size: replace(model_config(config, size), tie_word_embeddings=tied)  # noqa: E731
    monkeypatch.setattr("luthier.core.training.pretrain.model_config", shape)
    changed = {"mup_base_width": base_width, "optimizer": optimizer, "steps": 1}
    pretrain(shards, tmp_path / "model", PretrainConfig(**{**WIDE, **changed}))
    rate = 1e-2 * base_width / 64
    matrices = rate if optimizer == "adamw" else (1e-2 * rate) ** 0.5
    said = f"matrices {matrices:.2g}, {'last norm' if tied else 'head'} {rate:.2g}, for"
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_ends_bit_equal(shards: Path, tmp_path: Path, optimizer: Any, monkeypatch) -> None:
    config = PretrainConfig(**WIDE, optimizer=optimizer, save_every=0)
    pretrain(shards, tmp_path / "whole", config)
    seen, is_spike = [], loop.is_spike

    def interrupt(loss: float, before: Any) -> bool:
        seen.append(loss)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return is_spike(loss, before)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "is_spike", interrupt)
        pretrain(shards, tmp_path / "cut", config)
    state = json.loads(next((tmp_path / ".cut.building").glob("step-*/state.json")).read_text())
    assert state["step"] == 6
    pretrain(shards, tmp_path / "cut", config)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    with pytest.raises(ArtifactError, match="different work"):
        pretrain(shards, tmp_path / "cut", PretrainConfig(**{**WIDE, "mup_base_width": 32}, optimizer=optimizer))


def test_schedules_scale_every_group_alike(shards: Path, tmp_path: Path, monkeypatch) -> None:
    made = prepare(PretrainConfig(**WIDE, optimizer="adamw"), Given((shards,))).arguments
    (optimizer,) = made["optimizers"]
    rates, step = [], optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (rates.append([g["lr"] for g in optimizer.param_groups]), step()))
    loop.fit(**made, folder=tmp_path)
    first, seen = rates[0], {row[0] for row in rates}
    assert len(seen) > 3 and len(set(first)) == 2  # warm-up and decay; two rates
    for row in rates:
        assert [rate / row[0] for rate in row] == pytest.approx([rate / first[0] for rate in first])


def test_the_folder_opens_elsewhere_with_equal_logits(shards: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pretrain(shards, tmp_path / "model", PretrainConfig(**WIDE))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        a, b = load_model(tmp_path / "model")(ids), theirs(ids).logits
    assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_a_run_without_it_is_the_work_it_was(shards: Path, tmp_path: Path) -> None:
    """Folders made before there was µP are known again: their manifests do not name it."""
    pretrain(shards, tmp_path / "model", PretrainConfig(**{**WIDE, "mup_base_width": 0}))
    assert "mup_base_width" not in json.loads((tmp_path / "model" / "manifest.json").read_text())["settings"]


def test_a_base_model_has_its_weights(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="new weights"):
        pretrain(shards, tmp_path / "model", PretrainConfig(**WIDE), base=tmp_path)
    with pytest.raises(ConfigError, match="mup_base_width = -1"):
        PretrainConfig(mup_base_width=-1)
