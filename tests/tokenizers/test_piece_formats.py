"""tokenizer.json of tokenizers with pieces: ids equal to Hugging Face's, read and written."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizers
from luthier.tokenizers.formats import TokenizerFileError, load_tokenizer, save_tokenizer
from luthier.tokenizers.normalizer import Normalizer
from luthier.tokenizers.piece_bpe import PieceBpeTokenizer
from luthier.tokenizers.sentencepiece_model import load_sentencepiece
from luthier.tokenizers.unigram import Kind

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", ""))
needs_data = pytest.mark.skipif("LUTHIER_TEST_DATA" not in os.environ, reason="LUTHIER_TEST_DATA is not set")
HARD = [
    "",
    " ",
    "a",
    "a\r\nb",
    "e\u0301\u0323x",
    "ﬁne ½",
    "日本語 한국어",
    "\U0001f468\u200d\U0001f469",
    "▁a▁",
    "\0",
    " " * 30 + "x",
]


def small() -> PieceBpeTokenizer:
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], "▁", "a", "b", "▁a", "ab", "▁▁", "é"]
    kinds = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, *[Kind.BYTE] * 256, *[Kind.NORMAL] * 7]
    scores = np.array([0.0] * 259 + [-5, -6, -7, -1, -2, -9, -8], np.float32)
    rules = Normalizer(remove_extra_whitespaces=False)
    return PieceBpeTokenizer(pieces, scores, kinds=kinds, normalizer=rules, byte_fallback=True)


def theirs(folder: Path) -> Any:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def same(tokenizer: Any, other: Any, text: str) -> None:
    assert tokenizer.encode_ordinary(text).tolist() == other.encode(text, add_special_tokens=False).ids, text


@pytest.fixture(scope="module")
def pegasus():
    if "LUTHIER_TEST_DATA" not in os.environ:
        pytest.skip("LUTHIER_TEST_DATA is not set")
    file = DATA / "vocab" / "pegasus_unigram_tokenizer.json"
    other = tokenizers.Tokenizer.from_file(str(file))
    other.no_truncation()
    return load_tokenizer(file), other


@settings(max_examples=60)
@given(text=st.text("ab éß\n▁", max_size=30))
def test_llama_kind(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("llama")
    save_tokenizer(small(), folder)  # pyright: ignore[reportArgumentType]
    again = load_tokenizer(folder)
    assert isinstance(again, PieceBpeTokenizer)
    assert again.encode_ordinary(text).tolist() == small().encode_ordinary(text).tolist()
    same(again, theirs(folder), text)
    assert again.decode(again.encode_ordinary(text)) == theirs(folder).decode(again.encode_ordinary(text).tolist())


@needs_data
def test_llama2_as_json(tmp_path):
    tokenizer = load_sentencepiece(DATA / "vocab" / "llama2_tokenizer.model")
    save_tokenizer(tokenizer, tmp_path)  # pyright: ignore[reportArgumentType]
    again, other = load_tokenizer(tmp_path), theirs(tmp_path)
    for kind in ("english", "multilingual", "code"):
        text = (DATA / "text" / f"{kind}.txt").read_text(encoding="utf-8")[700_000:720_000]
        assert again.encode_ordinary(text).tolist() == tokenizer.encode_ordinary(text).tolist()
        same(again, other, text)
    for text in HARD:
        same(again, other, text)


def test_pegasus(pegasus):
    tokenizer, other = pegasus
    for kind in ("english", "multilingual", "code"):
        text = (DATA / "text" / f"{kind}.txt").read_text(encoding="utf-8")[700_000:740_000]
        same(tokenizer, other, text)
    for text in HARD:
        same(tokenizer, other, text)
    ids, places = tokenizer.offsets("A ﬁne  day")
    assert ids.tolist() == other.encode("A ﬁne  day", add_special_tokens=False).ids
    assert places[-1][1] == 10


@settings(max_examples=60)
@given(text=st.text(max_size=40))
def test_pegasus_on_any_text(pegasus, text):
    tokenizer, other = pegasus
    same(tokenizer, other, text)


def test_pegasus_written_again(pegasus, tmp_path):
    tokenizer, _ = pegasus
    save_tokenizer(tokenizer, tmp_path)
    other = theirs(tmp_path)
    other.no_truncation()
    for text in ("The quick brown fox.", "ﬁne ½ 日本"):
        same(tokenizer, other, text)
        same(load_tokenizer(tmp_path), other, text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, "NFKC are not supported"),
        ({"pre_tokenizer": {"type": "Digits"}}, r"Prepend \+ Replace \+ Digits are not supported"),
        ({"added_tokens": [{"id": 3, "content": "x", "special": False}]}, "'x' is not special"),
        ({"added_tokens": [{"id": 3, "content": "x", "special": True}]}, "'x' has the id 3, which is another's"),
    ],
)
def test_unknown_parts(change, message, tmp_path):
    save_tokenizer(small(), tmp_path)  # pyright: ignore[reportArgumentType]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(TokenizerFileError, match=message):
        load_tokenizer(file)


def test_unknown_parts_of_the_model(tmp_path):
    save_tokenizer(small(), tmp_path)  # pyright: ignore[reportArgumentType]
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    for key, value, message in (
        ("dropout", 0.1, "dropout=0.1"),
        ("merges", [["a", "zz"]], r"merge 0 is \['a', 'zz'\]: 'zz' is not in the vocabulary"),
        ("unk_token", None, "names no unknown token"),
        ("vocab", {"a": 0, "b": 2}, "a gap or one that is given twice"),
    ):
        file.write_text(json.dumps({**whole, "model": {**whole["model"], key: value}}))
        with pytest.raises(TokenizerFileError, match=message):
            load_tokenizer(file)


def test_what_json_cannot_say(tmp_path):
    trimmed = PieceBpeTokenizer(["<unk>", "a"], np.zeros(2, np.float32), normalizer=Normalizer())
    with pytest.raises(TokenizerFileError, match="cannot say this normalizer's rules"):
        save_tokenizer(trimmed, tmp_path / "x")  # pyright: ignore[reportArgumentType]
