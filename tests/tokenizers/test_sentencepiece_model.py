"""SentencePiece's files: read, written, opened by sentencepiece; everything broken is named with its byte."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from luthier.tokenizers.formats import TokenizerFileError, load_tokenizer
from luthier.tokenizers.normalizer import Normalizer
from luthier.tokenizers.piece_bpe import PieceBpeTokenizer
from luthier.tokenizers.sentencepiece_model import load_sentencepiece, save_sentencepiece
from luthier.tokenizers.unigram import Kind, UnigramTokenizer

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", ""))
needs_data = pytest.mark.skipif("LUTHIER_TEST_DATA" not in os.environ, reason="LUTHIER_TEST_DATA is not set")
MODELS = ["llama2_tokenizer", "mistral_v1", "mistral_v3", "sentencepiece_test_model", "sentencepiece_test_ja_model"]
KINDS = [
    Kind.UNKNOWN,
    Kind.CONTROL,
    Kind.CONTROL,
    Kind.NORMAL,
    Kind.NORMAL,
    Kind.NORMAL,
    Kind.USER_DEFINED,
    Kind.UNUSED,
]
PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<x>", "aa"]


def make(kind=UnigramTokenizer, **rules):
    normalizer = Normalizer(**rules, user_defined=("<x>",))
    return kind(PIECES, np.array([0, 0, 0, -3, -2, -1, 0, -9], np.float32), kinds=KINDS, normalizer=normalizer)


@pytest.mark.parametrize("kind", [UnigramTokenizer, PieceBpeTokenizer])
@pytest.mark.parametrize("suffix", [False, True])
def test_made_by_us_opened_by_them(kind, suffix, tmp_path):
    tokenizer = make(kind, remove_extra_whitespaces=False, treat_whitespace_as_suffix=suffix)
    save_sentencepiece(tokenizer, tmp_path / "m.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    again: Any = load_tokenizer(tmp_path / "m.model")
    assert type(again) is kind
    assert again.special_tokens == {"<s>": 1, "</s>": 2}
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == (0, 1, 2, -1)
    for text in ["", "a", "aa  aa", "a<x>a b", " a ", "zz▁a"]:
        assert again.encode_ordinary(text).tolist() == tokenizer.encode_ordinary(text).tolist() == theirs.encode(text)
    save_sentencepiece(again, tmp_path / "n.model")
    assert (tmp_path / "n.model").read_bytes() == (tmp_path / "m.model").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.model", "n.model"]


def test_folder_with_a_model(tmp_path):
    save_sentencepiece(make(), tmp_path / "tokenizer.model")
    assert load_tokenizer(tmp_path).vocab_size == 8


@needs_data
@pytest.mark.parametrize("name", MODELS)
def test_written_again_byte_for_byte(name, tmp_path):
    file = DATA / "vocab" / f"{name}.model"
    save_sentencepiece(load_sentencepiece(file), tmp_path / "m.model")
    assert (tmp_path / "m.model").read_bytes() == file.read_bytes()


@needs_data
@pytest.mark.parametrize("name", MODELS[3:])
def test_unigram_models(name):
    tokenizer = load_tokenizer(DATA / "vocab" / f"{name}.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "vocab" / f"{name}.model"))
    for kind in ("english", "multilingual", "code"):
        text = (DATA / "text" / f"{kind}.txt").read_text(encoding="utf-8")[500_000:540_000]
        assert tokenizer.encode_ordinary(text).tolist() == theirs.encode(text)
        assert tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    points = [f"a{chr(c)}b" for c in range(0, 0x110000, 7) if not 0xD800 <= c < 0xE000]
    ids, offsets = tokenizer.encode_batch(points)
    expected = theirs.encode(points)
    assert np.array_equal(np.diff(offsets), list(map(len, expected)))
    assert np.array_equal(ids, np.concatenate(expected))


@needs_data
def test_tiktoken_ranks_are_named():
    with pytest.raises(TokenizerFileError, match=r"tiktoken's ranks.*\n.*load_tiktoken"):
        load_tokenizer(DATA / "vocab" / "llama3_tokenizer.model")


def test_unknown_fields_are_kept(tmp_path):
    save_sentencepiece(make(), tmp_path / "m.model")
    data = (tmp_path / "m.model").read_bytes()
    more = data + b"\xca\x0c\x03new" + b"\xa0\x06\x05"  # fields 201 and 100
    extended = b"\x0a\x0c\x0a\x03new\x15\x00\x00\x80\xbf\x48\x07" + more  # a piece with a field 9
    (tmp_path / "m.model").write_bytes(extended)
    tokenizer = load_sentencepiece(tmp_path / "m.model")
    assert tokenizer.pieces[0] == "new"
    save_sentencepiece(tokenizer, tmp_path / "n.model")
    again = (tmp_path / "n.model").read_bytes()
    assert again[:14] == extended[:14]
    assert again.endswith(b"\xa0\x06\x05\xca\x0c\x03new") or again.endswith(b"\xca\x0c\x03new\xa0\x06\x05")


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


UNK = field(1, field(1, b"<unk>") + b"\x18\x02")
A = field(1, field(1, b"a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes and no piece"),
        (UNK + A[:-1], r"byte 11: field 1 has 3 bytes, but only 2 follow: the file is cut short"),
        (UNK + b"\x0a", r"byte 12: a number that does not end: the file is cut short"),
        (b"\x08\x01", r"byte 0: field 1 of the model has the wire type 0, expected 2"),
        (b"\x0b" + UNK, r"byte 0: field 1 has the wire type 3"),
        (b"\xff" * 12, r"byte 0: a number of more than 10 bytes"),
        (UNK + A + A, r"byte 16: the piece 'a' stands twice: ids 1 and 2"),
        (A, r"0 pieces are the unknown token"),
        (UNK + UNK.replace(b"<unk>", b"<abc>"), r"2 pieces are the unknown token"),
        (UNK + field(1, b"\x15\0\0\0\0"), r"byte 11: piece 1 has no text"),
        (UNK + field(1, field(1, b"\xff")), r"byte 15: the text of piece 1 is not UTF-8"),
        (UNK + field(1, field(1, b"a") + b"\x10\x01"), r"byte 16: the score of piece 1 has the wire type 0"),
        (UNK + field(1, field(1, b"a") + b"\x18\x09"), r"byte 16: piece 1, 'a', is of the unknown kind 9"),
        (UNK + A + field(2, b"\x18\x03"), r"the model is of type word, which is not supported"),
        (UNK + A + field(3, field(2, b"\x09\0\0\0")), r"byte 18: precompiled_charsmap: its trie should have 9 bytes"),
        (UNK + A + field(3, b"\x40\x01"), r"byte 18: normalizer_spec has the field 8"),
        (UNK + A + field(5, field(2, b"abc")), r"byte 18: the model has a denormalizer"),
        (UNK + A + field(2, b"\xc0\x02\x01\x98\x02\x01"), r"byte fallback needs a piece for every byte"),
    ],
)
def test_broken_files(data, message, tmp_path):
    file = tmp_path / "broken.model"
    file.write_bytes(data)
    with pytest.raises(TokenizerFileError, match=message) as error:
        load_sentencepiece(file)
    assert str(error.value).startswith(str(file))


def test_no_file(tmp_path):
    with pytest.raises(TokenizerFileError, match="No such file"):
        load_sentencepiece(tmp_path / "none.model")


@needs_data
def test_every_cut_is_an_error_or_a_model(tmp_path):
    data = (DATA / "vocab" / "sentencepiece_test_model.model").read_bytes()
    for end in (1, 7, 100, 4321, len(data) // 2, len(data) - 1):
        (tmp_path / "m.model").write_bytes(data[:end])
        with pytest.raises(TokenizerFileError, match="cut short"):
            load_sentencepiece(tmp_path / "m.model")
