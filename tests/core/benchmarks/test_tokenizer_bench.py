"""The benchmark of tokenizers: exactness first, rows of the agreed shape, peers that may be missing, a user's own.
Times are not judged."""

import json
import sys

import numpy as np
import pytest

from luthier.core.benchmarks import tokenizer_peers, tokenizer_training
from luthier.core.benchmarks import tokenizers as benchmark
from luthier.core.benchmarks.texts import documents, kinds
from luthier.core.benchmarks.tokenizer_peers import flat, vocabulary
from luthier.core.errors import ConfigError, InputError
from luthier.scripts.bench import main

KEYS = {"group", "case", "metric", "ours", "peer", "theirs", "ratio", "equal", "check", "p20", "p80"}
TEXT = "The soundboard is spruce. It's 1,250 °C, naïve 東京.\n" * 40
OWN = """
import json
import numpy as np
from luthier.tokenizers.formats import load_tokenizer


def right(path):
    assert (path / "tokenizer.json").is_file()
    tokenizer = load_tokenizer(path)
    return lambda text: tokenizer.encode_ordinary(text).tolist()


def without_last(path):
    tokenizer = load_tokenizer(path)
    return lambda text: tokenizer.encode_ordinary(text)[:-1]


def wrong_on_spaces(path):
    tokenizer = load_tokenizer(path)
    return lambda text: tokenizer.encode_ordinary(" ".join(text.split(" "))) if "  " not in text else np.zeros(1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "b.txt").write_text("def f(x):\n    return x + 1  # add\n" * 40, encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_encode_decode_count(folder, capsys):
    arguments = ["tokenizers", "--text", "a.txt", "--text", "b.txt", "--repeats", "1", "--save"]
    assert main([*arguments, "--only", "encode,cold,short,decode,count"]) == 0
    result = last_line(capsys)
    assert result["bench"] == "tokenizers"
    assert {"machine", "versions", "commit", "threads", "rows"} <= result.keys()
    assert all(row.keys() == KEYS and row["equal"] for row in result["rows"])
    assert {"ours again", "tiktoken", "tokenizers"} <= {
        row["peer"] if row["peer"] == "ours again" else row["peer"].split()[0] for row in result["rows"]
    }
    groups = {row["group"].split(",")[0] for row in result["rows"]}
    assert groups == {"encode", "load", "load and first pass", "short strings", "decode", "count"}
    (saved,) = (folder / "docs" / "benchmarks").iterdir()
    assert json.loads(saved.read_text()) == result


def test_a_wrong_encoder_does_not_pass(folder, capsys):
    arguments = ["tokenizers", "--text", "a.txt", "--repeats", "1", "--only", "encode"]
    assert main([*arguments, "--with", "own.py:without_last"]) == 1
    out = capsys.readouterr().out
    result = json.loads(out.strip().splitlines()[-1])
    wrong = [row for row in result["rows"] if not row["equal"]]
    assert {row["peer"] for row in wrong} == {"without_last (own.py)"}
    assert "NOT EQUAL" in out and "≠" in out
    assert main([*arguments, "--with", "own.py:wrong_on_spaces"]) == 1  # right on the text, wrong on strange strings


def test_a_right_encoder_passes_and_is_compared(folder, capsys):
    arguments = ["tokenizers", "--text", "a.txt", "--repeats", "1", "--only", "encode"]
    assert main([*arguments, "--with", "own.py:right", "--save"]) == 0
    capsys.readouterr()
    (saved,) = (folder / "docs" / "benchmarks").iterdir()
    assert main([*arguments, "--with", "own.py:right", "--against", str(saved)]) == 0
    out = capsys.readouterr().out
    assert "right (own.py)" in out
    assert "since 20" in out and "then" in out


def test_threads_and_training_in_processes_of_their_own(folder, monkeypatch):
    for module in (benchmark, tokenizer_training):
        monkeypatch.setattr(module, "thread_counts", lambda: [2])
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("etaoinshrdlu"), n)) for n in random.integers(1, 9, 400)]
    (folder / "words.txt").write_text(" ".join(words[i] for i in random.zipf(1.5, 20_000) % 400))
    rows = benchmark.run(texts=[folder / "words.txt"], repeats=1, only=["threads", "train"])
    assert [row for row in rows if not row["equal"]] == []
    assert any(row["metric"].startswith("MB above") and row["ours"] > 0 for row in rows)
    assert {"train", "encode, documents of 4,000 characters"} <= {row["group"] for row in rows}
    assert all(row["case"].endswith("2 threads") for row in rows)


def test_missing_peers_have_no_rows(folder, monkeypatch):
    for package in ("tiktoken", "tokenizers", "gigatoken", "bpe_openai", "rustbpe", "sentencepiece"):
        monkeypatch.setitem(sys.modules, package, None)
    rows = benchmark.run(texts=[folder / "a.txt"], repeats=1, only=["encode"])
    assert {row["peer"] for row in rows} == {"ours again"}


def test_a_peer_that_is_wrong_is_said_so(folder, monkeypatch):
    def broken(vocabulary):
        return tokenizer_peers.Peer("broken 1.0", lambda: None, lists=lambda model, text: [1, 2, 3])

    monkeypatch.setattr(tokenizer_peers, "PEERS", {"broken": broken})
    rows = benchmark.run(texts=[folder / "a.txt"], repeats=1, only=["encode"])
    assert [row["equal"] for row in rows if row["peer"] == "broken 1.0"] == [False]
    assert all(row["equal"] for row in rows if row["peer"] != "broken 1.0")


def test_documents_have_the_ids_of_the_whole():
    from luthier.tokenizers.bpe_train import train_bpe

    text = " ".join(["the cat's  hat, 12345", "naïve élan", "\n\nnew  lines\n", "東京に行く", "camelCase x_y"] * 60)
    for pattern in ("gpt2", "cl100k", "o200k", "llama3", "qwen2"):
        tokenizer = train_bpe([text], 300, pattern=pattern)
        parts = documents(text, 100)
        assert len(parts) > 10 and "".join(parts) == text
        assert (
            flat([tokenizer.encode_ordinary(part).tolist() for part in parts]).tolist()
            == flat(tokenizer.encode_ordinary(text)).tolist()
        )


def test_texts_that_every_machine_has():
    english, code, made = kinds()
    assert english.megabytes > 1 and code.megabytes > 1 and made.megabytes > 1
    assert len(made.text) < 0.7 * len(made.text.encode())


def test_wrong_use(folder):
    with pytest.raises(ConfigError, match="vectors takes no --vocab"):
        main(["vectors", "--vocab", "x"])
    with pytest.raises(ConfigError, match="repeats = 0"):
        main(["tokenizers", "--repeats", "0"])
    with pytest.raises(ConfigError, match=r"--only encod: no such group; did you mean 'encode'\?"):
        main(["tokenizers", "--only", "encod"])
    with pytest.raises(InputError, match="unknown vocabulary"):
        main(["tokenizers", "--vocab", "a.txt", "--text", "a.txt"])
    assert vocabulary(folder / "r50k_base.tiktoken").pattern == "gpt2"
