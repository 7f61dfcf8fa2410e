"""Pretraining: it learns, mixes as stated, starts from vectors, and refuses what does not fit together."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.artifacts import read_manifest
from luthier.core.data.shards import Shards, write_shards
from luthier.core.errors import ArtifactError, ConfigError, InputError, TrainingError
from luthier.core.training.batches import chance, mixed
from luthier.core.training.embedding import principal_components, start_embedding
from luthier.core.training.finetune_config import FinetuneConfig
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.core.training.pretrain_batches import sources
from luthier.core.training.runs import sampler
from luthier.models.checkpoints import load_model
from luthier.models.vectors import Vectors
from luthier.tokenizers.formats import TokenizerFileError

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "context": 16,
    "batch_size": 8,
    "threads": 1,
    "learning_rate": 1e-2,
}


def shards_of(folder: Path, documents: int = 12, vocabulary: int = 40) -> Path:
    """Documents that count upwards from a random start: a model that learned anything predicts the next number."""
    random = chance(3)
    made = [(random.integers(2, vocabulary) + np.arange(30)) % (vocabulary - 2) + 2 for _ in range(documents)]
    return write_shards(folder, made[:-2], made[-2:], vocab_size=vocabulary, eos_id=0)


def test_a_tiny_model_learns_to_count(tmp_path, capsys):
    shards = shards_of(tmp_path / "shards")
    done = pretrain(shards, tmp_path / "model", PretrainConfig(**{**TINY, "learning_rate": 2e-2}, steps=60))
    told = capsys.readouterr().err
    assert "parameters" in told and "TFLOP" in told and "60 of 8 × 16 tokens" in told
    assert done.loss < 1.0 < np.log(40) and done.validation_loss is not None and done.validation_loss < 2.0
    rows = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 61))
    model = load_model(tmp_path / "model")
    logits = model(torch.tensor([[7, 8, 9, 10, 11]]))
    assert logits[0, -1].argmax().item() == 12
    assert not pretrain(shards, tmp_path / "model", PretrainConfig(**{**TINY, "learning_rate": 2e-2}, steps=60)).changed
    with pytest.raises(ArtifactError, match="different work"):
        pretrain(shards, tmp_path / "model", PretrainConfig(**TINY, steps=61))


class Counting(torch.nn.Module):
    """Says the next number; notes how much it was given to read."""

    config = SimpleNamespace(context=3)

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.read = torch.nn.Embedding(10, 1), []

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        self.read.append(ids_BT.shape[1])
        return torch.nn.functional.one_hot((ids_BT + 1) % 10, 10).float()


def test_a_sample_ends_at_the_end_token_and_reads_no_further():
    model, digits = Counting(), lambda ids: "".join(str(i) for i in ids)
    tokenizer = SimpleNamespace(vocab_size=10, eos_id=8, encode=lambda text: [int(c) for c in text], decode=digits)
    write = sampler(model, tokenizer, "34")
    assert write is not None and write() == "34567" and model.read == [2, 3, 3, 3]


def test_the_same_settings_give_the_same_bytes(tmp_path):
    shards = shards_of(tmp_path / "shards")
    for name, spacing in (("a", 0.0), ("b", 1000.0)):
        pretrain(shards, tmp_path / name, PretrainConfig(**TINY, steps=5, save_every=spacing))
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = pretrain(shards, tmp_path / "a", PretrainConfig(**TINY, steps=5, save_every=77.0))
    assert not again.changed  # how often checkpoints are written is no other work


def test_own_and_general_text_mix_by_share(tmp_path):
    """Three documents of one's own, a hundred others: the share holds, and each kind keeps to its documents."""
    lengths = np.full(103, 20)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    lines = np.array([0, 1, 2] + [-1] * 100)
    tokens = np.repeat((lines < 0).astype(np.uint16), lengths)
    shards = Shards(tmp_path, "train", tokens, offsets, lines, 2, 0, "")
    shards.__dict__["names"] = [f"d{i}" for i in range(103)]
    own, general = sources(shards, context=10, seed=0)
    assert general is not None and own.total == 60 and general.total == 2000
    kinds = [mixed(own, general, 0.4, i).labels.mean() for i in range(100)]
    assert sorted(set(kinds)) == [0.0, 1.0] and kinds.count(1.0) == 40
    assert sum(kinds[:10]) == 4


def test_principal_components_keep_distances():
    x = chance(1).normal(size=(30, 6)) * [5, 4, 3, 1, 0.1, 0.01]
    turned = principal_components(x, 6)
    apart = lambda m: np.linalg.norm(m[:, None] - m[None], axis=-1)  # noqa: E731
    assert np.allclose(apart(x), apart(turned), atol=1e-9)
    few = principal_components(x, 3)
    _, singular, _ = np.linalg.svd(x - x.mean(0))
    assert np.allclose(np.linalg.norm(few, axis=0), singular[:3])


@pytest.mark.parametrize("dim", [4, 8, 20])
def test_embedding_starts_from_vectors_with_the_same_spread(dim):
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 0.02
    before = weight.clone()
    ids = np.arange(5, 45)[::-1].copy()
    table = chance(2).normal(size=(40, dim)).astype(np.float32) * 7 + 3
    vectors = Vectors(table, [f"t{i}" for i in ids], ids, np.ones(40, np.int64), spelling="byte-level")
    assert start_embedding(weight, vectors) == 40
    untouched = [*range(5), *range(45, 50)]
    assert torch.equal(weight[untouched], before[untouched])
    columns = min(dim, 8)
    rms = weight[5:45, :columns].square().mean().sqrt()
    assert abs(float(rms / before.std()) - 1) < 1e-5
    assert torch.equal(weight[5:45, columns:], before[5:45, columns:])
    cosine = lambda m: (m / np.linalg.norm(m, axis=1, keepdims=True)) @ (m / np.linalg.norm(m, axis=1, keepdims=True)).T  # noqa: E731
    if dim <= 8:
        centred = table - table.mean(0)
        assert np.allclose(cosine(weight[ids, :columns].numpy()), cosine(centred), atol=1e-4)


def test_a_run_starts_from_a_vectors_folder(tmp_path, capsys):
    shards = shards_of(tmp_path / "shards")
    table = chance(4).normal(size=(38, 32)).astype(np.float32)
    ids = np.arange(2, 40)
    vectors = Vectors(table, [f"t{i}" for i in ids], ids, np.ones(38, np.int64), spelling="byte-level")
    (tmp_path / "vectors").mkdir()
    vectors.save(tmp_path / "vectors")
    small = PretrainConfig(**{**TINY, "learning_rate": 1e-9}, steps=1)
    pretrain(shards, tmp_path / "planned", small, vectors=tmp_path / "vectors", plan=True)
    assert "38 of 40 tokens start from" in capsys.readouterr().err
    pretrain(shards, tmp_path / "model", small, vectors=tmp_path / "vectors")
    assert "38 of 40 tokens start from" in capsys.readouterr().err
    weight = load_model(tmp_path / "model").embed_tokens.weight.detach().numpy()[2:]
    centred = table - table.mean(0)
    assert abs(np.corrcoef((weight @ weight.T).ravel(), (centred @ centred.T).ravel())[0, 1]) > 0.999
    words = Vectors(table, [f"w{i}" for i in ids], ids, np.ones(38, np.int64))
    words.save(tmp_path / "vectors")
    with pytest.raises(InputError, match="holds no vector of a token"):
        pretrain(shards, tmp_path / "other", small, vectors=tmp_path / "vectors")


@pytest.mark.parametrize("held_out", [[], [np.arange(2, 6)]])
def test_a_run_measures_on_held_out_text_unless_it_is_told_not_to(tmp_path, capsys, held_out):
    """Held-out text shorter than a window is measured whole."""
    shards = write_shards(tmp_path / "shards", [np.arange(2, 30)], held_out, vocab_size=40, eos_id=0)
    done = pretrain(shards, tmp_path / "m", PretrainConfig(**TINY, steps=2, validation_tokens=16 if held_out else 0))
    told = capsys.readouterr().err
    assert ("held out     16 tokens, measured at every step" in told) == bool(held_out)
    assert ("nothing: only the training loss is measured" in told) == (done.validation_loss is None) == (not held_out)


def test_by_default_there_need_be_no_held_out_text_and_the_work_is_that_of_the_number(tmp_path, capsys):
    bare = write_shards(tmp_path / "bare", [np.arange(2, 30)], vocab_size=40, eos_id=0)
    done = pretrain(bare, tmp_path / "m", PretrainConfig(**TINY, steps=2))
    assert done.changed and done.validation_loss is None
    assert "held out     nothing: only the training loss is measured" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "manifest.json").read_text())["settings"]["validation_tokens"] == 16_384
    assert not pretrain(bare, tmp_path / "m", PretrainConfig(**TINY, steps=2, validation_tokens=16_384)).changed
    with pytest.raises(ArtifactError, match="different work"):
        pretrain(bare, tmp_path / "m", PretrainConfig(**TINY, steps=2, validation_tokens=0))


def test_one_of_several_folders_with_held_out_text_is_enough(tmp_path):
    bare = write_shards(tmp_path / "bare", [np.arange(2, 30)], vocab_size=40, eos_id=0)
    done = pretrain([bare, shards_of(tmp_path / "shards")], tmp_path / "m", PretrainConfig(**TINY, steps=2))
    assert done.validation_loss is not None


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path):
    shards = shards_of(tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"model = 'dem': no such preset, and no folder .*; did you mean 'demo'"):
        pretrain(shards, tmp_path / "m", PretrainConfig(model="dem"))
    with pytest.raises(ConfigError, match="num_attention_heads = 5"):
        pretrain(shards, tmp_path / "m", PretrainConfig(num_attention_heads=5))
    for rate in (-1.0, 0.0, math.nan):
        for kind in (PretrainConfig, FinetuneConfig):
            with pytest.raises(ConfigError, match=f"learning_rate = {rate:g}: expected more than 0"):
                kind(learning_rate=rate)
    wrong: dict[str, Any]
    for wrong in ({"epochs": math.nan}, {"epochs": math.inf}, {"warmup": 1.5}, {"max_grad_norm": math.nan}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} = .*: expected"):
            PretrainConfig(**wrong)
    with pytest.raises(ConfigError, match="weights = "):
        PretrainConfig(weights=(math.nan,))
    with pytest.raises(ConfigError, match="adamw"):
        FinetuneConfig(precision="bf16-pure", optimizer="muon")
    with pytest.raises(ConfigError, match="general_share = 1"):
        PretrainConfig(general_share=1)
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json does not exist"):
        pretrain(shards, tmp_path / "m", tokenizer=tmp_path)
    unmeasured = write_shards(tmp_path / "unmeasured", [np.arange(2, 30)], vocab_size=40, eos_id=0)
    asked: dict[str, Any]
    for asked in ({"validation_tokens": 1}, {"keep": "best"}):
        with pytest.raises(
            TrainingError, match=r"unmeasured: no held-out text .*\n.*\n.*give --validation-tokens 0 .*\[pre"
        ):
            pretrain(unmeasured, tmp_path / "m", PretrainConfig(**TINY, **asked))
    with pytest.raises(ConfigError, match=r"keep = 'best' goes by .* held-out text: give validation_tokens"):
        PretrainConfig(keep="best", validation_tokens=0)
    empty = write_shards(tmp_path / "empty", [], vocab_size=40, eos_id=0)
    with pytest.raises(TrainingError, match="holds no text to train on"):
        pretrain(empty, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_shape_from_a_config_json(tmp_path):
    """Of any family, with new weights, by the folder or the file; another file is other work."""
    from luthier.models.checkpoints import save_model
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer

    shapes: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "head_dim": 12,
    }
    shapes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24}
    for family in ("qwen3", "mistral"):
        save_model(Transformer(ModelConfig(**shapes, model_type=family)), tmp_path / family)
        (tmp_path / family / "model.safetensors").unlink()
    shards = shards_of(tmp_path / "shards")
    own: dict[str, Any] = {"context": 16, "batch_size": 8, "threads": 1, "steps": 2}
    config = PretrainConfig(model=str(tmp_path / "qwen3"), **own)
    pretrain(shards, tmp_path / "m", config)
    made = load_model(tmp_path / "m").config
    assert (made.model_type, made.head_dim, made.vocab_size, made.hidden_size) == ("qwen3", 12, 40, 32)
    assert made.max_position_embeddings == 24
    again = PretrainConfig(model=str(tmp_path / "qwen3" / "config.json"), **own)
    assert not pretrain(shards, tmp_path / "m", again).changed
    with pytest.raises(ArtifactError, match="shape has changed"):
        pretrain(shards, tmp_path / "m", PretrainConfig(model=str(tmp_path / "mistral"), **own))
    wider = pretrain(shards, tmp_path / "w", PretrainConfig(model=str(tmp_path / "qwen3"), intermediate_size=64, **own))
    assert wider.parameters == sum(p.numel() for p in load_model(tmp_path / "m").parameters()) + 3 * 16 * 32


def test_the_tokenizer_that_the_shards_hold(tmp_path):
    from luthier.core.data.encode import EncodeConfig, encode
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

    text = "A fret is a strip of metal. It divides the string. " * 30
    save_tokenizer(train_bpe([text], 300), tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text(text)
    encode([tmp_path / "a.txt"], tmp_path / "tokenizer", tmp_path / "shards", EncodeConfig(validation_fraction=0))
    pretrain(tmp_path / "shards", tmp_path / "m", PretrainConfig(**TINY, steps=2))
    assert load_tokenizer(tmp_path / "m").tokens == load_tokenizer(tmp_path / "tokenizer").tokens
    assert "tokenizer" not in read_manifest(tmp_path / "m")["inputs"]  # a run of before, without one, is the same work


def test_what_is_no_base_is_said(tmp_path):
    from luthier.models.checkpoints import CheckpointError

    shards = shards_of(tmp_path / "shards")
    with pytest.raises(InputError, match=r"nowhere: no such folder\nGive a model's folder"):
        pretrain(shards, tmp_path / "m", PretrainConfig(**TINY, steps=2), base=tmp_path / "nowhere")
    pretrain(shards, tmp_path / "m", PretrainConfig(**TINY, steps=4, keep="every", evaluate_every=2))
    kept = tmp_path / "m" / "step-00000002"
    with pytest.raises(CheckpointError, match=r"is a checkpoint of a run\nMake .* luthier export .*step-00000002"):
        pretrain(shards, tmp_path / "n", PretrainConfig(**TINY, steps=2), base=kept)


def test_a_tokenizer_that_cannot_be_kept_is_refused_before_the_first_step(tmp_path, data):
    """Mistral's third has rules that tokenizer.json has no word for."""
    from luthier.core.data.encode import EncodeConfig, encode

    (tmp_path / "a.txt").write_text("A fret is a strip of metal. " * 30)
    tokenizer = data / "vocab" / "mistral_v3.model"
    encode([tmp_path / "a.txt"], tokenizer, tmp_path / "shards", EncodeConfig(validation_fraction=0))
    with pytest.raises(InputError, match=r"cannot be kept beside a model's weights.*\nTake a byte-level one"):
        pretrain(tmp_path / "shards", tmp_path / "m", PretrainConfig(**TINY, steps=2))
    assert not (tmp_path / ".m.building").exists()
