"""Training: merges equal to Hugging Face's BpeTrainer and to the textbook, and Wikipedia's example by hand."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.bpe import Tokenizer, VocabularyError
from luthier.tokenizers.bpe_encode import Encoder, row_of
from luthier.tokenizers.bpe_merge import _share_done
from luthier.tokenizers.bpe_train import SPECIAL_TOKENS, merges_by_the_book, train_bpe, train_on_words
from luthier.tokenizers.formats import spell, unspell
from luthier.tokenizers.pretokenize import PATTERNS, PatternError
from luthier.tokenizers.word_counts import count_words
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFace

DATA = os.environ.get("LUTHIER_TEST_DATA")


def hugging_face(texts, vocab_size, pattern, special_tokens=SPECIAL_TOKENS, min_frequency=2):
    tokenizer: Any = HuggingFace(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(str(PATTERNS.get(pattern, pattern))), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())["model"]


def merged(tokenizer) -> list[tuple[bytes, bytes]]:
    return [(tokenizer.tokens[a], tokenizer.tokens[b]) for a, b in tokenizer.merges.tolist()]


def assert_equal(mine, theirs):
    assert merged(mine) == [(unspell(a), unspell(b)) for a, b in theirs["merges"]]
    names = {i: text for text, i in mine.special_tokens.items()}
    assert {names.get(i) or spell(t): i for i, t in enumerate(mine.tokens)} == theirs["vocab"]


def test_wikipedias_example():
    """aaabdaaabac: the pair aa occurs four times and becomes Z. Then ab occurs twice as Z·a·b: of Za and ab, equally
    frequent, the pair of smaller ids is taken, ab = Y. Then ZY, twice: X. XdXac is left, no pair occurs twice."""
    tokenizer = train_bpe(["aaabdaaabac"], 1000, special_tokens=(), pattern="gpt2")
    assert merged(tokenizer) == [(b"a", b"a"), (b"a", b"b"), (b"aa", b"ab")]
    ids = tokenizer.encode_ordinary("aaabdaaabac")
    assert [tokenizer.tokens[i] for i in ids] == [b"aaab", b"d", b"aaab", b"a", b"c"]


def test_layout_of_ids():
    tokenizer = train_bpe(["ab ab"], 300)
    assert tokenizer.tokens[:4] == [t.encode() for t in SPECIAL_TOKENS]
    assert tokenizer.tokens[4:7] == [b"!", b'"', b"#"]
    assert tokenizer.tokens[259] == b"\xad"
    assert tokenizer.tokens[260:] == [b"ab"]  # " ab" occurs once
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 3)


texts_of_runs = st.lists(st.text(st.sampled_from("aab- =\n"), max_size=40), max_size=12)


@settings(max_examples=60)
@given(texts=texts_of_runs, min_frequency=st.integers(1, 3))
def test_small_texts_equal_hugging_face(texts, min_frequency):
    """Runs of one letter are where a token may come about in two ways."""
    mine = train_bpe(texts, 330, pattern="gpt2", min_frequency=min_frequency)
    assert_equal(mine, hugging_face(texts, 330, "gpt2", min_frequency=min_frequency))


@settings(max_examples=40)
@given(texts=st.lists(st.text(st.sampled_from("abcde éß中"), max_size=30), max_size=6))
def test_textbook_gives_the_same_merges(texts):
    """Where no token comes about in two ways the plain loop and the fast path are one."""
    mine = train_bpe(texts, 300, special_tokens=(), pattern="llama3")
    book = merges_by_the_book(texts, 300, "llama3")
    if len({a + b for a, b in book}) == len(book):
        assert merged(mine) == book


@pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
@pytest.mark.parametrize(("kind", "pattern"), [("english", "llama3"), ("code", "gpt2"), ("multilingual", "o200k")])
def test_real_text_equals_hugging_face(kind, pattern):
    text = Path(DATA or "", "text", f"{kind}.txt").read_text(encoding="utf-8")[:400_000]
    texts = [text[i : i + 20_000] for i in range(0, len(text), 20_000)]
    assert_equal(train_bpe(texts, 4000, pattern=pattern), hugging_face(texts, 4000, pattern))


@settings(max_examples=40)
@given(texts=st.lists(st.text(st.sampled_from("abcd é中"), max_size=30), max_size=6), longest=st.integers(2, 6))
def test_no_token_is_longer_than_allowed(texts, longest):
    mine = train_bpe(texts, 300, special_tokens=(), max_token_length=longest)
    book = merges_by_the_book(texts, 300, "llama3", max_token_length=longest)
    assert all(len(token) <= longest for token in mine.tokens)
    if len({a + b for a, b in book}) == len(book):
        assert merged(mine) == book


def test_the_share_of_work_that_is_done_rises_to_one():
    heard = []
    words = count_words(["the cat sat on the mat and the dog ran to the man " * 20], "gpt2")
    train_on_words(words, 330, on_progress=lambda share, ids: heard.append((share, ids)))
    shares = [
        _share_done(np.array([0, 0, 0, ids, 0, 0, 0, 0, 30 * (ids - 256), 0, 0]), 256, 1000) for ids in (300, 1000)
    ]
    assert 0 < shares[0] < shares[1] == 1
    assert all(0 < share <= 1 for share, _ in heard)


def test_own_pattern_equals_hugging_face():
    texts = ["one two three two two three", "x1y2 x1y2"]
    assert_equal(train_bpe(texts, 290, pattern=r"\w+| "), hugging_face(texts, 290, r"\w+| "))


def test_what_cannot_be():
    with pytest.raises(VocabularyError, match="vocab_size 259 is too small: 256 bytes and 4 special tokens need 260"):
        train_bpe(["a"], 259)
    with pytest.raises(VocabularyError, match="must be different"):
        train_bpe(["a"], 300, special_tokens=("<x>", "<x>"))
    with pytest.raises(PatternError):
        train_bpe(["a"], 300, pattern="[")
    assert train_bpe([], 300).vocab_size == 260


def test_thousands_of_long_tokens():
    """Tokens of some hundred bytes each, more letters than a table has by itself; and too many ids are refused."""
    draw = np.random.default_rng(0)
    words = [bytes(draw.choice(list(b"abcdefgh"), 1000).astype(np.uint8)) for _ in range(3)]
    tokens, merges, ids = [bytes([b]) for b in range(256)], [], {}
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in ids:
                left = ids.get(word[: end - 1], word[0])
                ids[word[:end]] = len(tokens)
                merges.append((left, word[end - 1]))
                tokens.append(word[:end])
    tokenizer = Tokenizer(tokens, merges)
    assert sum(map(len, tokens)) > 1_000_000
    text = b" ".join(words).decode()
    assert tokenizer.encode_ordinary(text).tolist() == tokenizer.encode_reference(text)
    with pytest.raises(ValueError, match="fewer than 1,048,576"):
        Encoder(row_of([b"a"], [1 << 20]), np.empty((0, 2), np.int32), np.empty(0, np.int32), whole_pieces=True)
