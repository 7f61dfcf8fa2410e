"""The example's objective: its loss pair by pair from the logits, and a run with it from the command line."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from luthier.core.data.conversations import Message, encode_conversation
from luthier.core.data.preferences import Preference
from luthier.core.errors import TrainingError
from luthier.core.training.batches import pack
from luthier.core.training.dpo import encode_preference
from luthier.core.training.replay import replay
from luthier.examples.own_objective import BETA, GAMMA, simpo
from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import preset
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

PAIRS = [
    Preference(
        (Message("user", f"Part {i}?"),),
        (Message("assistant", "Of wood." * (1 + i % 2)),),
        (Message("assistant", "No."),),
    )
    for i in range(6)
]


def reward(model: Transformer, tokenizer: Tokenizer, pair: Preference, chosen: bool) -> torch.Tensor:
    ids, trained = encode_conversation(tokenizer, pair.conversation(chosen))
    ids_T = torch.from_numpy(ids).long()
    log_TV = model(ids_T[None, :-1])[0].log_softmax(-1)
    return BETA * log_TV.gather(1, ids_T[1:, None])[:, 0][torch.from_numpy(trained[1:])].mean()


def test_simpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_bpe(["Part 1? Of wood. No. user assistant"] * 3, 280)
    save_tokenizer(tokenizer, tmp_path / "model")
    shape = preset(
        "demo",
        vocab_size=280,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    save_model(Transformer(shape, seed=1), tmp_path / "model")
    model = load_model(tmp_path / "model")
    loss, _ = simpo(model, pack([encode_preference(tokenizer, p) for p in PAIRS], 96, tokenizer.pad_id))
    margins = torch.stack([reward(model, tokenizer, p, True) - reward(model, tokenizer, p, False) for p in PAIRS])
    expected = -torch.log(torch.sigmoid(margins - GAMMA)).sum()
    assert abs(float(loss) - float(expected)) < 1e-4 * float(expected)

    rows = [{"prompt": p.prompt[0].content, "chosen": p.chosen[0].content, "rejected": "No."} for p in PAIRS]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = Path(__file__).parents[2] / "examples" / "own_objective.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "model", "p.jsonl", "out"])
    runpy.run_path(str(script), run_name="__main__")
    assert "6 preferences, 6 steps" in capsys.readouterr().out
    assert len(script.read_text().splitlines()) < 40
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert abs(json.loads(lines[0])["loss"] * 6 - float(expected)) < 1e-4 * float(expected)
    with pytest.raises(TrainingError, match="an objective of its own, a function that is not in its folder"):
        replay(Path("out"), 1)
