"""A base model meets a new field: its tokenizer is extended, its vocabulary grows, the rest stays."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.artifacts import hash_file
from luthier.core.data.shards import write_shards
from luthier.core.errors import ConfigError, InputError
from luthier.core.training.finetune import FinetuneConfig, finetune
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.core.training.runs import open_base
from luthier.core.training.tokenizer import TokenizerConfig, train_tokenizer
from luthier.models.checkpoints import load_model
from luthier.scripts.train_tokenizer import main
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.formats import load_tokenizer

GENERAL = "The top is spruce and the back is maple. " * 30
FIELD = "Purfling keeps cracks out; kerfing joins top and sides. Purfling and kerfing are thin.\n" * 30
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "context": 32,
    "batch_size": 4,
    "threads": 1,
    "steps": 4,
    "validation_tokens": 0,
}


def shards_of(folder: Path, tokenizer: Tokenizer, text: str) -> Path:
    ids = [tokenizer.encode_ordinary(text)] * 2
    return write_shards(folder, ids, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("growing")
    (folder / "general.txt").write_text(GENERAL)
    (folder / "field.txt").write_text(FIELD)
    train_tokenizer([folder / "general.txt"], folder / "tokenizer", TokenizerConfig(vocab_size=300))
    shards = shards_of(folder / "shards", load_tokenizer(folder / "tokenizer"), GENERAL)
    pretrain(shards, folder / "model", PretrainConfig(**TINY), tokenizer=folder / "tokenizer")
    (folder / "q.jsonl").write_text(json.dumps({"question": "What is thin?", "answer": "Purfling and kerfing."}) + "\n")
    return folder


@pytest.fixture(scope="module")
def extended(base) -> Path:
    arguments = [str(base / "field.txt"), "--extend", str(base / "model"), "--add", "30", "--out", str(base / "more")]
    assert main(arguments) == 0
    return base / "more"


def test_the_verb_extends_and_tells(base, extended, capsys):
    old, new = load_tokenizer(base / "model"), load_tokenizer(extended)
    assert new.tokens[: old.vocab_size] == old.tokens
    assert new.vocab_size == old.vocab_size + 30
    assert new.chat_template == old.chat_template
    summary = train_tokenizer([base / "field.txt"], extended, TokenizerConfig(add=30), extend=base / "model")
    assert (summary.before, summary.tokens) == (old.count(FIELD), new.count(FIELD))
    assert "before the 30 new ids" in str(summary)
    assert "is up to date" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such file"):
        train_tokenizer([base / "field.txt"], base / "none", extend=base / "nothing")
    assert not (base / "none").exists()


def test_opening_a_base_with_more_ids_keeps_its_logits(base, extended):
    old, grown = load_model(base / "model"), open_base(base / "model", extended)
    ids = torch.from_numpy(load_tokenizer(base / "model").encode_ordinary(GENERAL[:80])).long()[None]
    with torch.no_grad():
        assert torch.equal(grown(ids)[..., : old.config.vocab_size], old(ids))


def test_new_rows_start_from_vectors(base, extended, tmp_path, capsys):
    """The rows of old ids keep their bits; those of new ids are what the map of the old ones makes of their vectors."""
    from luthier.core.training import pretrain as module
    from luthier.core.training.embedding import start_new_rows
    from luthier.core.training.vectors import VectorsConfig, train_vectors
    from luthier.models.vectors import load_vectors

    new, known = load_tokenizer(extended), load_tokenizer(base / "model").vocab_size
    digest = hash_file(extended / "tokenizer.json")
    ids = [new.encode_ordinary(FIELD + GENERAL)] * 2
    shards = write_shards(tmp_path / "s", ids, vocab_size=new.vocab_size, eos_id=new.eos_id, tokenizer=digest)
    config = VectorsConfig(vector_size=8, min_count=1, epochs=1)
    train_vectors([shards], tmp_path / "vectors", config, tokenizer=extended)
    given = module.Given((shards,), base / "model", tmp_path / "vectors", extended)
    model = module.prepare(PretrainConfig(**TINY), given).model
    plain = open_base(base / "model", extended)
    assert torch.equal(model.embed_tokens.weight[:known], plain.embed_tokens.weight[:known])
    expected = plain.embed_tokens.weight.detach().clone()
    assert start_new_rows(expected, load_vectors(tmp_path / "vectors"), range(known, new.vocab_size)) > 0
    assert torch.equal(model.embed_tokens.weight, expected)
    assert "tokens start from" in capsys.readouterr().err
    nothing = module.Given((base / "shards",), base / "model", tmp_path / "vectors", base / "model")
    with pytest.raises(InputError, match="the tokenizer has none"):
        module.prepare(PretrainConfig(**TINY), nothing)


def test_pretraining_goes_on_with_a_larger_vocabulary(base, extended, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(extended)
    shards = shards_of(tmp_path / "shards", tokenizer, FIELD)
    done = pretrain(shards, tmp_path / "model", PretrainConfig(**TINY), base=base / "model", tokenizer=extended)
    assert "30 new ones, each from the mean of the pieces it replaces" in capsys.readouterr().err
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert theirs.config.vocab_size == tokenizer.vocab_size == load_model(tmp_path / "model").config.vocab_size
    assert theirs.config.pad_token_id == load_model_config(base)["pad_token_id"]
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(FIELD)["input_ids"]
    assert ids == tokenizer.encode_ordinary(FIELD).tolist()
    assert done.steps == 4


def load_model_config(base: Path) -> dict[str, Any]:
    return json.loads((base / "model" / "config.json").read_text())


def test_pretraining_goes_on_with_the_same_vocabulary(base, tmp_path, capsys):
    """Without a tokenizer the base's own is taken, and its shape whatever the preset."""
    pretrain(
        base / "shards",
        tmp_path / "model",
        PretrainConfig(threads=1, steps=1, validation_tokens=0),
        base=base / "model",
    )
    assert "new ones" not in capsys.readouterr().err
    assert load_model(tmp_path / "model").config == load_model(base / "model").config
    assert load_tokenizer(tmp_path / "model").tokens == load_tokenizer(base / "model").tokens


def test_tuning_with_a_larger_vocabulary(base, extended, tmp_path, capsys):
    finetune(
        base / "model",
        [base / "q.jsonl"],
        tmp_path / "tuned",
        FinetuneConfig(epochs=1, batch_size=1, threads=1),
        tokenizer=extended,
    )
    assert "30 new ones" in capsys.readouterr().err
    assert load_model(tmp_path / "tuned").config.vocab_size == load_tokenizer(extended).vocab_size
    assert load_tokenizer(tmp_path / "tuned").tokens == load_tokenizer(extended).tokens


def test_a_tokenizer_that_changes_ids_is_refused(base, tmp_path):
    train_tokenizer([base / "field.txt"], tmp_path / "other", TokenizerConfig(vocab_size=300))
    with pytest.raises(InputError, match="gives ids another meaning"):
        finetune(base / "model", [base / "q.jsonl"], tmp_path / "tuned", tokenizer=tmp_path / "other")
    assert not (tmp_path / "tuned").exists() and not (tmp_path / "model").exists()


def test_a_longer_context_by_scaled_positions(base, tmp_path):
    """300 tokens are more than the base's 256: refused without the flag, read with it; the folder keeps the scaling."""
    shards = base / "shards"
    longer: dict[str, Any] = {**TINY, "context": 300, "steps": 1}
    with pytest.raises(ConfigError, match=r"context = 300: .*model reads 256 tokens\n.*--scale-positions yarn"):
        pretrain(shards, tmp_path / "cut", PretrainConfig(**longer), base=base / "model")
    with pytest.raises(ConfigError, match=r"context = 300: .*model reads 256 tokens\n.*--too-long"):
        finetune(base / "model", [base / "q.jsonl"], tmp_path / "tuned", FinetuneConfig(context=300, threads=1))
    longer["scale_positions"] = "yarn"
    pretrain(shards, tmp_path / "long", PretrainConfig(**longer), base=base / "model")
    config = load_model(tmp_path / "long").config
    assert config.context == 300 and config.rope_scaling is not None and config.rope_scaling.rope_type == "yarn"
    with pytest.raises(ConfigError, match="scale_positions is for a base model"):
        pretrain(shards, tmp_path / "new", PretrainConfig(**longer), tokenizer=base / "tokenizer")
    assert not (tmp_path / "new").exists()
