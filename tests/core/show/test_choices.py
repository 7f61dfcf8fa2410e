"""A run's choices, and weights without a config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.core.show.show import show


def test_what_a_run_keeps_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"threads": 2, "processes": 1}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    show(tmp_path)
    shown = capsys.readouterr().out
    assert "kept in run.json" in shown and "threads      2" in shown and "loss of 1 step," in shown
    (tmp_path / "step-00000007").mkdir()
    state = {"step": 7, "threads": 1, "compile": "off", "kernels": "AVX512: products by MKL", "torch": "2.13.0"}
    (tmp_path / "step-00000007" / "state.json").write_text(json.dumps(state))
    show(tmp_path)
    shown = capsys.readouterr().out
    assert "step 7, kept by step-00000007" in shown and "threads      1" in shown
    assert "kernels      AVX512: products by MKL" in shown and "compile      off" in shown


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"])
def test_weights_without_a_config(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=rf"holds weights \({name}\) and no config\.json"):
        show(tmp_path)
    if name == "model.safetensors":
        with pytest.raises(InputError, match=r"no config\.json"):
            show(tmp_path / name)
