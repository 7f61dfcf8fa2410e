"""The row of time to a quality says who reached it; equal only where ours did, by all of the held-out text too."""

import json
import math
from pathlib import Path

import pytest
import torch

from luthier.core.benchmarks import training

# A checkout of nanoGPT that says its losses line by line and saves a model.
STUB = """
import sys, time
out = next(a.split("=")[1] for a in sys.argv if a.startswith("--out_dir"))
for step, loss in ((0, 4.1), (250, {middle}), (500, {last})):
    print(f"step {{step}}: train loss 1.0, val loss {{loss}}")
    if step:
        print(f"saving checkpoint to {{out}}")
        open(f"{{out}}/ckpt.pt", "w").write(str(loss))
    print(f"iter {{step}}: loss 1.0, time 1.0ms")
    time.sleep(60 if loss <= 1.88 else 0)  # until it is ended
"""


@pytest.mark.parametrize(
    ("ours", "whole", "equal"), [(1.83, 1.84, True), (1.9, 1.84, False), (1.87, 1.95, False)], ids=str
)
def test_a_peer_that_does_not_reach_the_loss_is_named(monkeypatch, ours, whole, equal):
    monkeypatch.setattr(training, "_recipe", lambda text, most: training.Reached(40.0, ours, whole))
    monkeypatch.setattr(training, "_nanogpt", lambda folder, text, most: training.Reached(90.0, 1.886, 1.898))
    (row,) = training._quality(Path("text"), "nanogpt", 1, 100.0)
    assert "nanoGPT 1.886, whole text 1.898, not reached" in row["case"]
    assert f"ours {ours:.3f}, whole text {whole:.3f}" + (";" if ours < 1.88 else ", not reached;") in row["case"]
    assert row["equal"] == equal and row["ratio"] == 2.25


@pytest.mark.parametrize(("middle", "last", "saved"), [(1.87, 1.8, "1.87"), (1.95, 1.9, "1.9")], ids=str)
def test_the_peer_ends_where_it_reaches_the_loss(tmp_path, monkeypatch, middle, last, saved):
    (tmp_path / "data" / "shakespeare_char").mkdir(parents=True)
    (tmp_path / "data" / "shakespeare_char" / "train.bin").touch()
    (tmp_path / "train.py").write_text(STUB.format(middle=middle, last=last))
    monkeypatch.setattr(training, "in_child", lambda function, folder, file: float(file.read_text()))
    run = training._nanogpt(tmp_path, tmp_path / "text", 100.0)
    assert (run.loss, run.whole) == (float(saved), float(saved))


def test_the_loss_of_a_whole_text_is_the_mean_over_its_windows():
    ids = torch.arange(130) % 7
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    loss = training._mean_loss(lambda x: table[x], ids)
    expected = torch.nn.functional.cross_entropy(table[ids[:128]], ids[1:129])
    assert math.isclose(loss, float(expected), rel_tol=1e-6)


def test_ours_is_the_loss_of_the_saved_model(tmp_path):
    from luthier.models.checkpoints import load_model, save_model
    from luthier.models.config import preset
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    shape = preset("demo", vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                   num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    save_model(Transformer(shape, seed=0), tmp_path)
    tokenizer = train_bpe(["no merges"], 260)
    save_tokenizer(tokenizer, tmp_path)
    text = tmp_path / "text.txt"
    text.write_text(json.dumps(list(range(400))))
    ids = torch.tensor(tokenizer.encode_ordinary(text.read_text())[int(0.9 * len(text.read_text())) :]).long()
    with torch.no_grad():
        logits = load_model(tmp_path)(ids[None, :128].view(-1, 64))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:129])
    assert math.isclose(training._whole_of_ours(tmp_path, text), float(expected), rel_tol=1e-5)
