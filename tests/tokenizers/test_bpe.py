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
from luthier.tokenizers.bpe_encode import all_pairs, row_of
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tiktoken, tokenizer_files
from luthier.tokenizers.pretokenize import PATTERNS, split
from luthier.tokenizers.shares import Share, share_out
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


@settings(max_examples=300)
@given(text=text_like | st.text("aäb", max_size=200))
def test_encoding_equals_the_book_and_decodes_to_the_text(tokenizer, text):
    ids = tokenizer.encode_ordinary(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == tokenizer.encode_reference(text)
    assert tokenizer.encode_ordinary(text).tolist() == ids.tolist()  # now from the cache
    assert tokenizer.decode(ids) == text
    assert tokenizer.count(text) == len(ids)


@settings(max_examples=200)
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
@settings(max_examples=400)
@given(text=text_like | st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cn", "Co")), max_size=20))
def test_ids_are_tiktokens_on_any_text(pair, text):
    ours, theirs = pair
    assert ours.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)


@settings(max_examples=150)
@given(
    words=st.lists(st.text("ab", min_size=2, max_size=6).map(str.encode), unique=True, max_size=12),
    texts=st.lists(st.text("ab", min_size=1, max_size=70), max_size=12),
)
def test_any_vocabulary_gives_tiktokens_ids(words, texts):
    """Also where several pairs make the same token, whichever rank it has; pieces of every length, so joined one by one
    and side by side."""
    tokens = [*(bytes([b]) for b in range(256)), *words]
    ranks = {token: i for i, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    merges, joined = all_pairs(row_of(tokens, range(len(tokens))))
    ours = Tokenizer(tokens, merges, pattern="gpt2", whole_pieces=True, joined=joined, ranks=joined)
    wanted = theirs.encode_ordinary(text := " ".join(texts))
    assert ours.encode_ordinary(text).tolist() == ours.encode_reference(text) == wanted


NAMES = ("<|endoftext|>", "<|fim|>", "<x>")  # the first two are special tokens, the third is not
choices = st.sampled_from(
    ["all", *(frozenset(n for n, b in zip(NAMES, f"{k:03b}", strict=True) if b == "1") for k in range(8))]
)


@pytest.fixture(scope="module")
def small_pair() -> tuple[Tokenizer, tiktoken.Encoding]:
    """A small vocabulary with two special tokens, in ours and in tiktoken."""
    tokens = [*(bytes([b]) for b in range(256)), b"en", b"do", b"end", b"te", b"xt", b"text"]
    special = {name: len(tokens) + i for i, name in enumerate(NAMES[:2])}
    ranks = {token: i for i, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens=special)
    merges = [(101, 110), (100, 111), (256, 100), (116, 101), (120, 116), (259, 260)]
    tokens += [name.encode() for name in special]
    return Tokenizer(tokens, merges, pattern="gpt2", special_tokens=special, whole_pieces=True), theirs


@settings(max_examples=400)
@given(
    text=st.lists(st.sampled_from([*NAMES, "end", "<|", "|>", "<|endoftext", " text", "\ud83c", "\udfbb"]), max_size=8),
    allowed=choices,
    disallowed=choices,
)
def test_special_tokens_are_tiktokens(small_pair, text, allowed, disallowed):
    """Every combination of allowed and disallowed, "all" and sets with names that are no special tokens."""
    (ours, theirs), text = small_pair, "".join(text)
    assert ours.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)
    try:
        wanted = theirs.encode(text, allowed_special=allowed, disallowed_special=disallowed)
    except ValueError:
        with pytest.raises(SpecialTokenError, match="spells the special token"):
            ours.encode(text, allowed, disallowed)
    else:
        assert ours.encode(text, allowed, disallowed).tolist() == wanted
        assert ours.decode(wanted) == theirs.decode(wanted)


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
    monkeypatch.setattr("luthier.tokenizers.bpe_encode.FIRST_SLOTS", 4)
    monkeypatch.setattr("luthier.tokenizers.bpe_encode.MOST_SLOTS", 8)
    tokenizer.forget()
    assert tokenizer.encode_ordinary(TEXT).tolist() == tokenizer.encode_reference(TEXT)
    tokenizer.forget()


@pytest.fixture(scope="module")
def with_added(tokenizer) -> Tokenizer:
    """The same with two tokens from outside the merges, one of which holds the other, and NFC."""
    size = tokenizer.vocab_size
    return Tokenizer(
        [*tokenizer.tokens, b"<t>", b"<t>ool"],
        tokenizer.merges,
        special_tokens=tokenizer.special_tokens,
        added_tokens={"<t>": size, "<t>ool": size + 1},
        normalizer="NFC",
    )


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_batch(tokenizer, with_added, num_threads, monkeypatch):
    monkeypatch.setattr("luthier.tokenizers.shares.SMALLEST", 100)
    texts = [
        "",
        TEXT,
        "a",
        "<|endoftext|>",
        "<t>",
        "<t>ool<t>x",
        TEXT * 9,
        TEXT[::-1],
        "🎻" * 60,  # more ids than characters
        "\ud83c\udfbb",
        "e\u0301",
        "",
    ] * 5
    for t in (tokenizer, with_added):
        ids, offsets = t.encode_batch(texts, num_threads)
        assert (ids.dtype, offsets.dtype, len(offsets)) == (np.int32, np.int64, len(texts) + 1)
        for i, text in enumerate(texts):
            assert ids[offsets[i] : offsets[i + 1]].tolist() == t.encode_ordinary(text).tolist()
        assert t.encode_batch([], num_threads)[1].tolist() == [0]
        assert t.encode_batch([""], num_threads)[1].tolist() == [0, 0]


def _parts_of(shares: list[Share]) -> list[str]:
    return [part for s in shares for part in (s if isinstance(s, list) else [s.tobytes().decode()])]


@settings(max_examples=100)
@given(texts=st.lists(st.text("ab \n", max_size=40)), num_threads=st.integers(1, 3), size=st.integers(1, 30))
def test_shares_joined_are_the_texts(texts, num_threads, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luthier.tokenizers.shares.SMALLEST", size)
        shares, ends = share_out(texts, num_threads, "gpt2")
    parts = _parts_of(shares)
    begins = [0, *ends][: len(texts)]
    assert ["".join(parts[a:b]) for a, b in zip(begins, ends, strict=True)] == texts


@settings(max_examples=300)
@given(text=st.text("aB'.5 \n\n\n\r\t²あ\u0301ǅ/", max_size=40), pattern=st.sampled_from(list(PATTERNS)))
def test_a_long_text_is_cut_where_a_piece_begins_anyway(text, pattern):
    """The pieces of the parts are those of the whole, for every pattern."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("luthier.tokenizers.shares.SMALLEST", 1)
        shares, _ = share_out([text], 100, pattern)
    parts = _parts_of(shares)
    assert [piece for part in parts for piece in split(part, pattern)] == split(text, pattern)


@settings(max_examples=200)
@given(text=text_like | st.text("ab <t>ool\n🎻", max_size=80), max_tokens=st.integers(4, 20))
def test_parts_fit_and_joined_are_the_text(tokenizer, with_added, text, max_tokens):
    for t in (tokenizer, with_added):  # which normalizes: a character may be several, and more than 4 tokens
        max_tokens = max([max_tokens, *map(t.count, text)])
        parts = t.split_at(text, max_tokens)
        assert "".join(parts) == text
        assert all(part and t.count(part) <= max_tokens for part in parts)


def test_parts_are_as_long_as_they_can_be(tokenizer):
    parts = tokenizer.split_at(TEXT * 50, 64)
    assert len(parts) <= 1 + tokenizer.count(TEXT * 50) / 62
    assert tokenizer.split_at("a" * 100_000, 512)[0].count("a") > 512
    assert tokenizer.split_at("", 5) == []
    with pytest.raises(ValueError, match=r"the character '🎻' is \d tokens, more than max_tokens = 1"):
        tokenizer.split_at("a🎻", 1)


@settings(max_examples=100)
@given(text=text_like)
def test_offsets_name_the_characters_of_each_token(tokenizer, text):
    ids, places = tokenizer.offsets(text)
    assert len(ids) == len(places)
    for i, (start, end) in zip(ids, places, strict=True):
        token = tokenizer.tokens[i]
        assert token in text[start:end].encode()
        assert start == 0 or token not in text[start + 1 : end].encode() or len(token) < len(text[start:end].encode())
    assert not text or (places[0][0], places[-1][1]) == (0, len(text))


@settings(max_examples=200)
@given(text=st.text("ae\u0301\u0327\u1100\u1161\u11a8\u212b\u0958\ud83c\udfbb<t>ol", max_size=30))
def test_offsets_through_normalization_and_mending(with_added, text):
    """What the tokens of some characters say is what these characters are encoded as; the places cover the text."""
    ids, places = with_added.offsets(text)
    assert ids.tolist() == with_added.encode_ordinary(text).tolist()
    assert [a for a, _ in places] == sorted(a for a, _ in places)
    covered = {i for a, b in places for i in range(a, b)}
    assert covered == set(range(len(text)))
    for i, (start, end) in zip(ids, places, strict=True):
        spelled = with_added.decode(with_added.encode_ordinary(text[start:end]))
        assert with_added.tokens[i] in spelled.encode()


def test_offsets_of_what_normalization_joins():
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
    bare = Tokenizer([bytes([b]) for b in range(256)], [])
    with pytest.raises(SpecialTokenError, match="has not got an end-of-text token"):
        _ = bare.eos_id


def test_half_characters_and_halves_of_pairs(tokenizer):
    ids = tokenizer.encode_ordinary("🎻")
    assert tokenizer.decode(ids[:1]) == "�"
    assert tokenizer.decode_bytes(ids) == "🎻".encode()
    assert list(tokenizer.stream_decode(iter([*ids, *tokenizer.encode_ordinary("x")]))) == ["🎻", "x"]
    assert tokenizer.encode_ordinary("x\ud83c\udfbb").tolist() == tokenizer.encode_ordinary("x🎻").tolist()
    assert tokenizer.encode_ordinary("x\ud83cy").tolist() == tokenizer.encode_ordinary("x�y").tolist()


@settings(max_examples=200)
@given(text=st.text("\ud83c\udfbb\ufeffa ", max_size=12))
def test_surrogates_are_mended_as_tiktoken_does(small_pair, text):
    ours, theirs = small_pair
    assert ours.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)
    assert ours.encode(text, "all").tolist() == theirs.encode(text, allowed_special="all")
    assert ours.decode(ours.encode_ordinary(text)) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def test_a_second_thread_knows_what_the_first_has_met(tokenizer, monkeypatch):
    monkeypatch.setattr("luthier.tokenizers.shares.SMALLEST", 100)
    texts, encoder = [TEXT] * 9, tokenizer._encoder
    tokenizer.forget()
    ids, _ = tokenizer.encode_batch(texts)
    met = int(encoder._desks[0].cache.used[0])
    assert tokenizer.encode_batch(texts, 2)[0].tolist() == ids.tolist()
    assert [int(desk.cache.used[0]) for desk in encoder._desks] == [met, met]
    assert not any(np.shares_memory(a, b) for a, b in zip(*(desk.cache for desk in encoder._desks), strict=True))
