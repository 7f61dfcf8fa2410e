"""The view of a model says what the config and the loss say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from luthier.core.errors import InputError
from luthier.core.show.model import show_model
from luthier.models.checkpoints import CheckpointError, save_model
from luthier.models.config import parameter_count, preset
from luthier.models.transformer import Transformer


def test_parameters_and_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    tokenizer = train_bpe(["the spruce soundboard and the maple back"] * 9, vocab_size=280)
    model = Transformer(preset("demo", vocab_size=tokenizer.vocab_size))
    save_model(model, tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    text = "the spruce [bold] is ü"
    show_model(tmp_path, text)
    shown = capsys.readouterr().out
    assert f"{parameter_count(model.config):,} parameters" in shown and "layers.N.mlp.down_proj.weight" in shown
    ids = [tokenizer.eos_id, *tokenizer.encode_ordinary(text).tolist()]
    loss, count = model.loss(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))
    bits = float(loss.detach()) / math.log(2)
    assert f"{int(count)} tokens, {bits / int(count):.2f} bits a token" in shown
    assert f"{bits / len(text.encode()):.2f} bits a byte" in shown and "'['" in shown
    with pytest.raises(InputError, match="holds no token"):
        show_model(tmp_path, "")
    with pytest.raises(InputError, match="reads 256 at once"):
        show_model(tmp_path, "ü" * 300)
    with pytest.raises(CheckpointError):
        show_model(tmp_path / "nothing")
