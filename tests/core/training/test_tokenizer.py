"""The stage: what it reads, what it writes, that it does nothing twice; its verb and its view."""

import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
import zstandard

from luthier.core.artifacts import read_manifest
from luthier.core.data.conversations import CHATML_TEMPLATE
from luthier.core.errors import ArtifactError, ConfigError, InputError
from luthier.core.show.tokenizer import show_tokenizer
from luthier.core.training.tokenizer import TokenizerConfig, train_tokenizer
from luthier.scripts.train_tokenizer import main
from luthier.tokenizers import normalizer
from luthier.tokenizers.bpe import VocabularyError
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tokenizer
from tokenizers import Tokenizer as HuggingFace

TEXT = "The soundboard is spruce, and the soundboard is thin. Straße 12, 13, 14.\n" * 4
SMALL = TokenizerConfig(vocab_size=320)


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "a.txt"


def test_trains_writes_and_is_done(text_file, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    summary = train_tokenizer([text_file], out, SMALL)
    assert (summary.vocab_size, summary.texts, summary.bytes) == (load_tokenizer(out).vocab_size, 1, len(TEXT.encode()))
    assert "bytes a token" in str(summary)
    tokenizer = load_tokenizer(out)
    assert tokenizer.merges.tolist() == train_bpe([TEXT], 320).merges.tolist()
    assert summary.tokens == tokenizer.count(TEXT)
    assert tokenizer.chat_template == CHATML_TEMPLATE
    assert HuggingFace.from_file(str(out / "tokenizer.json")).encode(TEXT).ids == tokenizer.encode(TEXT).tolist()
    manifest = read_manifest(out, "train-tokenizer")
    assert [d["path"] for d in manifest["documents"]] == ["a.txt"]
    before = (out / "manifest.json").stat().st_mtime_ns
    assert train_tokenizer([text_file], out, SMALL) == summary
    assert (out / "manifest.json").stat().st_mtime_ns == before
    assert "is up to date" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="holds different work"):
        train_tokenizer([text_file], out, TokenizerConfig(vocab_size=280))
    assert train_tokenizer([text_file], out, TokenizerConfig(vocab_size=280), overwrite=True).vocab_size == 280


def test_held_out_and_volatile_documents_are_not_read(tmp_path):
    """A corpus' validation and volatile documents change no merge."""
    rows = [("train", "stable", "alpha alpha alpha"), ("validation", "stable", "beta beta beta")]
    rows += [("train", "volatile", "gamma gamma gamma")]
    corpus = tmp_path / "corpus"
    _corpus(corpus, rows)
    train_tokenizer([corpus], tmp_path / "tokenizer", SMALL)
    expected = train_bpe(["alpha alpha alpha"], 320)
    assert load_tokenizer(tmp_path / "tokenizer").tokens == expected.tokens


def _corpus(folder, rows):
    from dataclasses import asdict

    from luthier.core.artifacts import Artifact, write_jsonl
    from luthier.core.data.corpus import Document, Source

    with Artifact(folder, "collect", {}, {}) as work:
        documents = [
            asdict(Document(str(i), text, Source(f"{i}.txt", "0", "text/plain"), kind=kind, split=split))
            for i, (split, kind, text) in enumerate(rows)
        ]
        write_jsonl(work.folder / "documents.jsonl", documents)
        write_jsonl(work.folder / "rejected.jsonl", [])


def test_what_cannot_be_used_writes_nothing(text_file, tmp_path):
    out = tmp_path / "tokenizer"
    with pytest.raises(VocabularyError, match="vocab_size 100 is too small"):
        train_tokenizer([text_file], out, TokenizerConfig(vocab_size=100))
    with pytest.raises(ValueError, match="not a regular expression"):
        train_tokenizer([text_file], out, TokenizerConfig(pattern="("))
    with pytest.raises(InputError, match="no such file"):
        train_tokenizer([tmp_path / "missing"], out, SMALL)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        train_tokenizer([tmp_path / "latin.txt"], out, SMALL)
    with pytest.raises(ConfigError, match="endoftext"):
        TokenizerConfig(special_tokens=("<x>",))
    wrong: dict[str, Any]
    for wrong in ({"add": 0}, {"max_piece_length": 5}, {"max_token_length": 1}, {"num_threads": -1}, {"max_memory": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            TokenizerConfig(**wrong)
    with pytest.raises(ConfigError, match="leave out one of"):
        train_tokenizer([text_file], out, TokenizerConfig(model="unigram"), extend=tmp_path)
    assert not out.exists()


def test_verb_and_view(text_file, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    arguments = [str(text_file), "--vocab-size", "320", "--out", str(out), "--tiktoken", str(tmp_path / "t.tiktoken")]
    assert main(arguments) == 0
    assert (tmp_path / "t.tiktoken").is_file()
    assert "ids" in capsys.readouterr().out
    show_tokenizer(out, "The soundboard<|im_end|>")
    shown = capsys.readouterr().out
    assert "a byte-level BPE tokenizer of" in shown
    assert "<|im_start|> 1" in shown
    assert "2:<|im_end|>" in shown
    assert json.loads((out / "training.json").read_text())["wanted"] == 320


def test_threads_and_memory_are_no_other_work(text_file, tmp_path, capsys):
    """What changes nothing in the result does not make it again; a limit on tokens does."""
    out = tmp_path / "tokenizer"
    train_tokenizer([text_file], out, TokenizerConfig(vocab_size=320, num_threads=2))
    train_tokenizer([text_file], out, TokenizerConfig(vocab_size=320, num_threads=1, max_memory=1))
    assert "is up to date" in capsys.readouterr().err
    short = TokenizerConfig(vocab_size=320, max_token_length=3)
    train_tokenizer([text_file], out, short, overwrite=True)
    assert max(len(t) for t in load_tokenizer(out).tokens[4:]) == 3


def test_a_field_or_column_of_another_name(tmp_path, capsys):
    """The merges of the texts themselves, whatever file they stand in; the name is part of the work unless it is the
    default, without which work done before there was a name is the same."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    rows = [f"{TEXT} {i}" for i in range(20)]
    lines = "".join(json.dumps({"n": i, "body": row}) + "\n" for i, row in enumerate(rows)).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    pq.write_table(arrow.table({"n": list(range(20)), "body": rows}), tmp_path / "a.parquet", row_group_size=7)
    merges = train_bpe(rows, 320).merges.tolist()
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        with pytest.raises(InputError, match=rf"{name}.*: no (field|column) 'text'; it has .*\n.* --column body$"):
            train_tokenizer([tmp_path / name], tmp_path / "refused", SMALL)
        out = tmp_path / f"tokenizer-{name}"
        assert main([str(tmp_path / name), "--vocab-size", "320", "--column", "body", "--out", str(out)]) == 0
        assert load_tokenizer(out).merges.tolist() == merges, name
        assert read_manifest(out)["settings"]["column"] == "body"
    capsys.readouterr()
    train_tokenizer([tmp_path / "a.jsonl"], tmp_path / "tokenizer-a.jsonl", replace(SMALL, column="body"))
    assert "is up to date" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="different work: column was body"):
        train_tokenizer([tmp_path / "a.jsonl"], tmp_path / "tokenizer-a.jsonl", SMALL)


def test_the_texts_are_never_replaced(text_file, tmp_path):
    with pytest.raises(InputError, match=r"is to be read, and --out .* would replace it"):
        train_tokenizer([text_file], tmp_path, SMALL, overwrite=True)
    assert text_file.read_text(encoding="utf-8") == TEXT


def test_the_default_column_is_not_part_of_the_work(text_file, tmp_path):
    train_tokenizer([text_file], tmp_path / "tokenizer", SMALL)
    assert set(read_manifest(tmp_path / "tokenizer")["settings"]) == {  # as stored before there was a column
        "model", "vocab_size", "add", "general", "pattern", "min_frequency", "max_token_length", "character_coverage",
        "max_piece_length", "special_tokens",
    }  # fmt: skip


def test_what_was_cut_is_told(tmp_path):
    (tmp_path / "one_word.txt").write_text("x" * 5_000 + " end")
    summary = train_tokenizer([tmp_path / "one_word.txt"], tmp_path / "tokenizer", TokenizerConfig(vocab_size=300))
    assert (summary.capped, summary.cut, summary.bytes) == (1, 0, 5_004)
    assert "1 pieces were longer than --max-piece-length and were cut there\n" in str(summary)


def test_jsonl_rows_gz_and_folders_give_the_merges_of_their_texts(tmp_path):
    import gzip

    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines()))
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write(TEXT)
    summary = train_tokenizer([folder], tmp_path / "tokenizer", SMALL)
    assert summary.texts == 5
    expected = train_bpe([*TEXT.splitlines(), TEXT], 320)
    assert load_tokenizer(tmp_path / "tokenizer").merges.tolist() == expected.merges.tolist()


def test_unigram_model_opens_in_sentencepiece(tmp_path, capsys, monkeypatch):
    """Without the table of NFKC, which takes a while to make and has tests of its own."""
    sentencepiece = pytest.importorskip("sentencepiece")
    monkeypatch.setattr(normalizer, "nmt_nfkc", lambda: normalizer.Normalizer("identity"))
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    out = tmp_path / "tokenizer"
    arguments = [str(tmp_path / "a.txt"), "--model", "unigram", "--vocab-size", "60", "--character-coverage", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "bytes a token" in capsys.readouterr().out
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    facts = json.loads((out / "training.json").read_text())
    assert facts["vocab_size"] == theirs.vocab_size()
    assert facts["tokens"] == len(theirs.encode(TEXT))
