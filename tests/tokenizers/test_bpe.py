"""Encoding and decoding: ids equal to the textbook, tiktoken and Hugging Face's tokenizers; what is refused."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.bpe import SpecialTokenError, TokenIdError, Tokenizer, VocabularyError, encode_by_the_book
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tiktoken, tokenizer_files
from luthier.tokenizers.pretokenize import PATTERNS, TextError
from tokenizers import Tokenizer as HuggingFace

DATA = os.environ.get("LUTHIER_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
# As tiktoken spells its patterns itself; ours must cut the same.
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"""
    r"""|\s*[\r\n]|\s+(?!\S)|\s"""
)
R50K = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
VOCABULARIES = {
    "r50k_base": ("gpt2", R50K),
    "cl100k_base": ("cl100k", CL100K),
    "o200k_base": ("o200k", PATTERNS["o200k"]),
}
TRICKY = "aAbZ'’ſstTrRlLvVeEmMdD01٣²Ⅷ .,!/-_\n\r\t \u0085\u00a0\u2028e\u0301ǅʰ中あกß\x00😀"
TEXT = "The soundboard is spruce; the soundboard's grain is straight. 1,250 °C\r\n\tx = y  # naïve 東京 🎻\n\n" * 3
SURROGATES = {"blacklist_categories": ("Cs", "Cn", "Co")}  # unassigned ones may be letters in one Unicode version only
text_like = st.text(st.sampled_from(TRICKY), max_size=30) | st.text(st.characters(max_codepoint=0x2FFF), max_size=30)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT, "a a aa aaa aaaa aaaaa bread breadboard board"], 420)


@pytest.fixture(scope="module", params=VOCABULARIES)
def pair(request) -> tuple[Tokenizer, tiktoken.Encoding]:
    """The same vocabulary in ours and in tiktoken."""
    file, (pattern, expression) = Path(DATA or "", "vocab", f"{request.param}.tiktoken"), VOCABULARIES[request.param]
    ranks = {base64.b64decode(t): int(r) for t, r in map(bytes.split, file.read_bytes().splitlines())}
    special = {"<|endoftext|>": len(ranks)}
    theirs = tiktoken.Encoding(request.param, pat_str=expression, mergeable_ranks=ranks, special_tokens=special)
    return load_tiktoken(file, pattern=pattern, special_tokens=special), theirs


def test_by_the_book():
    """abab with merges ab, then abab: two joins of the first rank from the left, then one of the second."""
    ranks = {(0, 1): (0, 2), (2, 2): (1, 3)}
    byte_ids = [0] * 97 + [0, 1] + [0] * 157
    assert encode_by_the_book(b"ababb", ranks, byte_ids) == [3, 1]
    assert encode_by_the_book(b"", ranks, byte_ids) == []


@settings(max_examples=300, deadline=None)
@given(text=text_like | st.text("aäb", max_size=200))
def test_encoding_equals_the_book_and_decodes_to_the_text(tokenizer, text):
    ids = tokenizer.encode_ordinary(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.encode_reference(text)
    assert tokenizer.encode_ordinary(text).tolist() == ids.tolist()  # now from the cache
    assert tokenizer.decode(ids) == text
    assert tokenizer.count(text) == len(ids)


@settings(max_examples=200, deadline=None)
@given(text=text_like)
def test_encoding_equals_hugging_face(tokenizer, text):
    theirs = HuggingFace.from_str(tokenizer_files(tokenizer)["tokenizer.json"])
    assert tokenizer.encode(text, allowed_special="all").tolist() == theirs.encode(text).ids
    assert theirs.decode(theirs.encode(text).ids, skip_special_tokens=False) == text


@needs_data
def test_ids_are_tiktokens_on_real_text(pair):
    ours, theirs = pair
    for kind in ("english", "code", "multilingual"):
        text = Path(DATA or "", "text", f"{kind}.txt").read_text(encoding="utf-8")[2_000_000:2_400_000]
        assert ours.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode_ordinary(text)) == text


@needs_data
@settings(max_examples=400, deadline=None)
@given(text=text_like | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co")), max_size=20))
def test_ids_are_tiktokens_on_any_text(pair, text):
    ours, theirs = pair
    assert ours.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)


@needs_data
def test_special_tokens_as_tiktoken_has_them(pair):
    ours, theirs = pair
    text = "one<|endoftext|>two <|endoftext|>"
    assert ours.encode(text, "all").tolist() == theirs.encode(text, allowed_special="all")
    assert ours.encode(text, disallowed_special=()).tolist() == theirs.encode(text, disallowed_special=())
    assert ours.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)
    for encoding in (ours, theirs):
        with pytest.raises(ValueError, match="endoftext"):
            encoding.encode(text)


def test_long_pieces_are_linear_and_equal_to_short_ones(tokenizer):
    """A million letters take n log n steps; n² would be days. Pieces of up to 64 bytes go another way: same ids."""
    assert len(tokenizer.encode_ordinary("a" * 1_000_000)) < 1_000_000
    for length in (63, 64, 65, 66, 200):
        for word in ("a", "bread", "soundboard", "ß"):
            text = (word * length)[:length]
            assert tokenizer.encode_ordinary(text).tolist() == tokenizer.encode_reference(text)
    noise = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 100_000)))
    assert tokenizer.decode(tokenizer.encode_ordinary(noise)) == noise


def test_a_full_cache_starts_afresh(tokenizer, monkeypatch):
    monkeypatch.setattr("luthier.tokenizers.bpe_encode.CACHE_PIECES", 8)
    tokenizer.forget()
    assert tokenizer.encode_ordinary(TEXT).tolist() == tokenizer.encode_reference(TEXT)
    tokenizer.forget()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_batch(tokenizer, num_threads):
    texts = ["", TEXT, "a", "<|endoftext|>", TEXT[::-1], ""] * 5
    ids, offsets = tokenizer.encode_batch(texts, num_threads)
    assert offsets.dtype == np.int64 and len(offsets) == len(texts) + 1
    for i, text in enumerate(texts):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == tokenizer.encode_ordinary(text).tolist()
    assert tokenizer.encode_batch([])[1].tolist() == [0]


@settings(max_examples=100, deadline=None)
@given(text=text_like)
def test_offsets_name_the_characters_of_each_token(tokenizer, text):
    ids, places = tokenizer.offsets(text)
    assert len(ids) == len(places)
    for i, (start, end) in zip(ids, places, strict=True):
        token = tokenizer.tokens[i]
        assert token in text[start:end].encode()
        assert start == 0 or token not in text[start + 1 : end].encode() or len(token) < len(text[start:end].encode())
    assert not text or (places[0][0], places[-1][1]) == (0, len(text))


def test_offsets_through_normalization():
    """e + combining accent is one character after NFC; its token names both characters of the text."""
    plain = train_bpe(["é"], 260)
    tokenizer = Tokenizer(plain.tokens, plain.merges, special_tokens=plain.special_tokens, normalizer="NFC")
    ids, places = tokenizer.offsets("ae\u0301b")
    assert ids.tolist() == tokenizer.encode_ordinary("aéb").tolist()
    assert places == [(0, 1), (1, 3), (1, 3), (3, 4)]


def test_special_tokens(tokenizer):
    text = "a<|im_end|>b"
    ids = tokenizer.encode(text, {"<|im_end|>"})
    assert ids.tolist() == [*tokenizer.encode_ordinary("a"), 2, *tokenizer.encode_ordinary("b")]
    assert tokenizer.decode(ids) == text
    assert 2 not in tokenizer.encode_ordinary(text)
    with pytest.raises(SpecialTokenError, match=r"'<\|im_end\|>' at character 1\n"):
        tokenizer.encode(text, {"<|pad|>"})
    with pytest.raises(SpecialTokenError, match="'<x>' is not a special token"):
        tokenizer.encode(text, {"<x>"})
    bare = Tokenizer([bytes([b]) for b in range(256)], [])
    with pytest.raises(SpecialTokenError, match="has not got an end-of-text token"):
        _ = bare.eos_id


def test_half_characters_and_halves_of_pairs(tokenizer):
    ids = tokenizer.encode_ordinary("🎻")
    assert tokenizer.decode(ids[:1]) == "�"
    assert tokenizer.decode_bytes(ids) == "🎻".encode()
    with pytest.raises(TextError, match=r"character 1 .* U\+D83C"):
        tokenizer.encode_ordinary("x\ud83c")


@pytest.mark.parametrize(("ids", "where"), [([1, 420], "id 420 at position 1"), ([-1], "id -1 at position 0")])
def test_ids_out_of_range(tokenizer, ids, where):
    size = tokenizer.vocab_size
    ids = [size if i == 420 else i for i in ids]
    with pytest.raises(TokenIdError, match=where.replace("420", str(size))):
        tokenizer.decode(ids)
    with pytest.raises(TokenIdError, match="whole numbers"):
        tokenizer.decode([0.5])
    assert tokenizer.decode([]) == ""


def test_vocabularies_that_are_none():
    every = [bytes([b]) for b in range(256)]
    with pytest.raises(VocabularyError, match=r"b'ab' stands twice"):
        Tokenizer([*every, b"ab", b"ab"], [])
    with pytest.raises(VocabularyError, match="lacks the byte 0x00"):
        Tokenizer(every[1:], [])
    with pytest.raises(VocabularyError, match=r"merge 0 joins b'a' and b'b', but the result is not in the vocabulary"):
        Tokenizer(every, [(97, 98)])
    with pytest.raises(VocabularyError, match="no such ids"):
        Tokenizer(every, [(97, 256)])
    with pytest.raises(VocabularyError, match="out of range"):
        Tokenizer(every, [], special_tokens={"<x>": 256})
