"""Word2Vec as a stage: killed and resumed, continued on new text, with phrases and n-grams, on several threads."""

import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from luthier.core.artifacts import read_json
from luthier.core.errors import ConfigError, InputError, TrainingError
from luthier.core.show.vectors import show_vectors
from luthier.core.training import word2vec as stage
from luthier.core.training.rows import prepare_rows
from luthier.core.training.vectors import VectorsConfig, train_vectors
from luthier.models import word2vec as model
from luthier.models.vectors import load_vectors

SMALL: Any = {"vector_size": 16, "epochs": 2, "min_count": 2, "window": 3, "bucket": 500}
NAMES = ("spruce", "cedar", "maple", "lute", "guitar", "viol", "ébène")


def write_text(path, count, seed=0, extra=()):
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"{a}{b}" for a in NAMES for b in NAMES] + list(extra))
    chosen = vocabulary[np.minimum(rng.geometric(0.06, count) - 1, len(vocabulary) - 1)]
    path.write_text(" ".join(chosen.tolist()), encoding="utf-8")
    return path


def table(folder):
    return (folder / "vectors.safetensors").read_bytes()


CHILD = """
import sys
from pathlib import Path
from luthier.core.training import word2vec
from luthier.core.training.vectors import VectorsConfig, train_vectors
from luthier.models import word2vec as model
word2vec.EVERY, model.ROUND = 0.0, 1
config = VectorsConfig(vector_size=16, epochs=6, min_count=2, window=3, **eval(sys.argv[3]))
train_vectors([Path(sys.argv[1])], Path(sys.argv[2]), config)
"""


@pytest.mark.parametrize("options", [{}, {"deterministic": True, "workers": 2}])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, options, monkeypatch):
    """Killed at a random moment after its first stored state, then finished; against one that was never stopped."""
    source = write_text(tmp_path / "text.txt", 60_000)
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(source), str(tmp_path / "killed"), repr(options)])
    state = tmp_path / ".killed.building" / stage.FOLDER / stage.STATE
    deadline = time.monotonic() + 60
    while process.poll() is None and not state.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    assert state.exists() and not (tmp_path / "killed").exists()
    monkeypatch.setattr(model, "ROUND", 1)
    config = VectorsConfig(vector_size=16, epochs=6, min_count=2, window=3, **options)
    for name in ("killed", "whole"):
        train_vectors([source], tmp_path / name, config)
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    log = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("killed", "whole")]
    assert log[0] == log[1]
    files = ["manifest.json", "metrics.jsonl", "training.json", "vectors.safetensors", "vocabulary.jsonl"]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == files


@pytest.mark.parametrize("kind", [{}, {"sg": False}, {"max_n": 4}, {"hs": True}])
def test_deterministic_gives_the_same_bits_on_1_2_and_4_threads(tmp_path, kind):
    source = write_text(tmp_path / "text.txt", 12_000)
    for workers in (1, 2, 4):
        config = VectorsConfig(**SMALL, deterministic=True, workers=workers, **kind)
        train_vectors([source], tmp_path / str(workers), config)
    assert table(tmp_path / "1") == table(tmp_path / "2") == table(tmp_path / "4")


@pytest.mark.parametrize("kind", [{}, {"max_n": 4}])
def test_going_on_with_new_text_and_a_grown_vocabulary(tmp_path, kind):
    first = write_text(tmp_path / "first.txt", 8_000)
    second = write_text(tmp_path / "second.txt", 4_000, seed=1, extra=["sarangi", "oud"])
    train_vectors([first], tmp_path / "a", VectorsConfig(**SMALL, **kind))
    # Next to no learning: the old words must still be where they were.
    still = VectorsConfig(**{**SMALL, "alpha": 1e-9, "min_alpha": 1e-9, "epochs": 1}, **kind)
    train_vectors([second], tmp_path / "b", still, start=tmp_path / "a")
    a, b = load_vectors(tmp_path / "a"), load_vectors(tmp_path / "b")
    assert set(a.tokens) < set(b.tokens) and {"sarangi", "oud"} <= set(b.tokens)
    for word in a.tokens:
        np.testing.assert_allclose(b[word], a[word], atol=1e-5)
        assert a.contexts is not None and b.contexts is not None
        np.testing.assert_allclose(b.contexts[b.row(word)], a.contexts[a.row(word)], atol=1e-5)
    old, new = (path.read_text(encoding="utf-8").split() for path in (first, second))
    assert b.counts[b.row("lutelute")] == old.count("lutelute") + new.count("lutelute")
    assert (np.diff(b.counts) <= 0).all()
    train_vectors([second], tmp_path / "c", VectorsConfig(**SMALL, **kind), start=tmp_path / "a")
    assert np.abs(load_vectors(tmp_path / "c")["lutelute"] - a["lutelute"]).max() > 1e-3
    with pytest.raises(ConfigError, match="cannot start"):
        other = VectorsConfig(**{**SMALL, "vector_size": 8}, **kind)
        train_vectors([second], tmp_path / "d", other, start=tmp_path / "a")
    assert not (tmp_path / "d").exists()


def test_an_unseen_word_has_a_vector_near_to_its_like(tmp_path, capsys):
    source = write_text(tmp_path / "text.txt", 20_000)
    train_vectors([source], tmp_path / "v", VectorsConfig(**{**SMALL, "epochs": 3}, max_n=5))
    vectors = load_vectors(tmp_path / "v")
    assert "lutelutes" not in vectors
    near = vectors.tokens[vectors.nearest(vectors["lutelutes"], 1)[0][0]]
    assert near == "lutelute"
    show_vectors(tmp_path / "v", near=["Lutelutes"], analogy=["lutelutes", "lute", "viol"])
    shown = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["Lutelutes", "lutelute"] in shown and ["lutelutes", "−"] in shown
    with pytest.raises(InputError, match="'' has no vector"):  # too short for an n-gram
        show_vectors(tmp_path / "v", near=[""])


def test_phrases_become_words(tmp_path):
    rng = np.random.default_rng(0)
    fill = [f"w{n}" for n in rng.integers(0, 200, 6000)]
    for at in range(0, 6000, 60):
        fill[at : at + 2] = ["New", "York"]
    (tmp_path / "text.txt").write_text(" ".join(fill), encoding="utf-8")
    config = VectorsConfig(**SMALL, phrases=1, phrase_threshold=40.0)
    train_vectors([tmp_path / "text.txt"], tmp_path / "v", config)
    vectors = load_vectors(tmp_path / "v")
    assert vectors.counts[vectors.row("new_york")] == 100
    assert "new" not in vectors and "york" not in vectors
    assert read_json(tmp_path / "v" / "training.json")["tokens"] == 5900


def test_rows_follow_documents_and_long_ones_are_whole(tmp_path):
    """Three documents, of them one of 40,000 words: every word known is in the rows, in order."""
    texts = [write_text(tmp_path / f"{n}.txt", size, n) for n, size in enumerate((300, 40_000, 5))]
    (tmp_path / "out").mkdir()
    rows = prepare_rows(tmp_path / "out", VectorsConfig(**SMALL), texts=texts)
    words = [path.read_text(encoding="utf-8").split() for path in texts]
    known = [[w for w in document if w in rows.tokens] for document in words]
    assert [rows.tokens[r] for r in rows.rows] == [w for document in known for w in document]
    assert np.diff(rows.offsets).tolist() == [len(d) for d in known]
    assert rows.read == 40_305


def test_vectors_of_another_tokenizer_are_refused(tmp_path):
    from luthier.core.artifacts import hash_file
    from luthier.core.data.shards import write_shards
    from luthier.core.training.pretrain import PretrainConfig, pretrain
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    text = write_text(tmp_path / "text.txt", 3000).read_text(encoding="utf-8")
    tokenizer = train_bpe([text], 300)
    (tmp_path / "tokenizer").mkdir()
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    facts: Any = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id}
    digest = hash_file(tmp_path / "tokenizer" / "tokenizer.json")
    write_shards(tmp_path / "shards", [tokenizer.encode_ordinary(text)], **facts, tokenizer=digest)
    config, shards = VectorsConfig(**SMALL), [tmp_path / "shards"]
    made_by: Any = {"tokenizer": tmp_path / "tokenizer"}
    train_vectors(shards, tmp_path / "v", config, **made_by)
    train_vectors([tmp_path / "text.txt"], tmp_path / "words", config)
    with pytest.raises(InputError, match="the text is of byte-level"):
        train_vectors(shards, tmp_path / "w", config, start=tmp_path / "words", **made_by)
    vocabulary = tmp_path / "v" / "vocabulary.jsonl"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8").replace('"Ġ', '"Ġx', 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"vocabulary.jsonl:\d+: token \d+ is 'Ġx"):
        train_vectors(shards, tmp_path / "x", config, start=tmp_path / "v", **made_by)
    with pytest.raises(InputError, match=r"v/vocabulary.jsonl:\d+: token \d+ is 'Ġx"):
        pretrain(shards, tmp_path / "x", PretrainConfig(validation_tokens=0), vectors=tmp_path / "v", **made_by)
    assert not (tmp_path / "x").exists()


def test_vectors_that_are_no_numbers_are_refused(tmp_path):
    source = write_text(tmp_path / "text.txt", 20_000)
    with pytest.raises(TrainingError, match=r"no numbers any more\nLower --alpha \(now 1e\+09\)"):
        train_vectors([source], tmp_path / "v", VectorsConfig(**SMALL, alpha=1e9))
    assert not (tmp_path / "v").exists()


def test_settings_without_an_objective_are_refused():
    with pytest.raises(ConfigError, match="nothing to learn from"):
        VectorsConfig(negative=0)
    with pytest.raises(ConfigError, match="max_n = -1"):
        VectorsConfig(max_n=-1)
