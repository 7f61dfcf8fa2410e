"""Unigram segmentation: equal to sentencepiece's and to the enumeration of all ways; sampling; n-best; refusals."""

import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.bpe import SpecialTokenError, TokenIdError, VocabularyError
from luthier.tokenizers.unigram import Kind, UnigramTokenizer, segment_by_the_book

DATA = os.environ.get("LUTHIER_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
MODELS = ("sentencepiece_test_model", "sentencepiece_test_ja_model")


class Spaces:
    """A normalizer that only spells spaces: `normalize` may be replaced by another."""

    def __init__(self, normalize: Any = None) -> None:
        self.normalize = normalize or (lambda text: "▁" + text.replace(" ", "▁") if text else "")

    def to_utf8(self, texts):
        parts = [self.normalize(text).encode() for text in texts]
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        return np.frombuffer(b"".join(parts), np.uint8), starts

    def normalize_with_places(self, text):
        return self.normalize(text), [(0, 0), *((i, i + 1) for i in range(len(text)))]

    def restore(self, text):
        return text.removeprefix(" ")


def make(log_p: dict[str, float], **settings) -> UnigramTokenizer:
    return UnigramTokenizer(["<unk>", *log_p], np.array([0, *log_p.values()], np.float32), **settings)


def all_ways(text: str, log_p: dict[str, float]) -> dict[tuple[str, ...], float]:
    """Every segmentation of `text` and its score."""
    if not text:
        return {(): 0.0}
    ways = {}
    for i in range(1, len(text) + 1):
        if text[:i] in log_p:
            ways |= {(text[:i], *way): log_p[text[:i]] + s for way, s in all_ways(text[i:], log_p).items()}
    return ways


letters = {"▁": -3.0, "a": -2.5, "b": -2.75}
longer = st.dictionaries(
    st.text(st.sampled_from("ab"), min_size=2, max_size=4)
    | st.text(st.sampled_from("ab"), max_size=3).map("▁{}".format),
    st.integers(-40, -4).map(lambda x: x / 4),
    max_size=12,
)
words = st.text(st.sampled_from("ab "), min_size=1, max_size=8)


def test_by_hand():
    """▁hug, probability 0.1, beats ▁h·ug, 0.2 · 0.3 = 0.06, and ▁·hug, 0.5 · 0.15 = 0.075; without it ▁·hug is best."""
    p = {"▁hug": 0.1, "▁h": 0.2, "ug": 0.3, "▁": 0.5, "hug": 0.15}
    log_p = {piece: float(np.log(x)) for piece, x in p.items()}
    assert make(log_p, normalizer=Spaces()).encode_ordinary("hug").tolist() == [1]
    assert segment_by_the_book("▁hug", {k: v for k, v in log_p.items() if k != "▁hug"}) == ["▁", "hug"]


@settings(max_examples=100)
@given(extra=longer, text=words)
def test_best_of_all_ways(extra, text):
    log_p = extra | letters
    tokenizer = make(log_p, normalizer=Spaces())
    ways = all_ways(tokenizer.normalizer.normalize(text), log_p)
    book = tuple(tokenizer.encode_reference(text))
    fast = tuple(tokenizer.pieces[i] for i in tokenizer.encode_ordinary(text))
    assert ways[book] == ways[fast] == max(ways.values()) == pytest.approx(tokenizer.log_likelihood(text))


@settings(max_examples=60)
@given(extra=longer, text=words, n=st.integers(1, 40))
def test_nbest_are_the_best_of_all_ways(extra, text, n):
    log_p = extra | letters
    tokenizer = make(log_p, normalizer=Spaces())
    ways = all_ways(tokenizer.normalizer.normalize(text), log_p)
    found = tokenizer.nbest(text, n)
    assert len({tuple(ids.tolist()) for ids, _ in found}) == len(found) == min(n, len(ways))
    assert [score for _, score in found] == sorted(ways.values(), reverse=True)[:n]
    assert all(ways[tuple(tokenizer.pieces[i] for i in ids)] == score for ids, score in found)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_samples_have_the_probabilities_of_the_lattice(alpha):
    log_p = letters | {"ab": -2.0, "▁a": -2.25, "aba": -3.5, "ba": -4.0}
    tokenizer, n = make(log_p, normalizer=Spaces()), 8000
    generator = np.random.default_rng(0)
    drawn = Counter(tuple(tokenizer.pieces[i] for i in tokenizer.sample("abab", alpha, generator)) for _ in range(n))
    ways = all_ways("▁abab", log_p)
    weights = np.exp(alpha * np.array(list(ways.values())))
    for way, share in zip(ways, weights / weights.sum(), strict=True):
        assert abs(drawn[way] - n * share) < 5 * np.sqrt(n * share * (1 - share)) + 1e-9, way
    assert tokenizer.sample("abab", 0.5, 7).tolist() == tokenizer.sample("abab", 0.5, 7).tolist()


def test_unknown_characters_are_joined_or_become_bytes():
    tokenizer = make(letters, normalizer=Spaces())
    assert tokenizer.encode_ordinary("aéßb☃ ☃").tolist() == [1, 2, 0, 3, 0, 1, 0]
    pieces = ["<unk>", *letters, *(f"<0x{b:02X}>" for b in range(256))]
    kinds = [Kind.UNKNOWN, *[Kind.NORMAL] * 3, *[Kind.BYTE] * 256]
    scores = np.array([0, *letters.values(), *[0] * 256], np.float32)
    tokenizer = UnigramTokenizer(pieces, scores, kinds=kinds, byte_fallback=True, normalizer=Spaces())
    ids, spans = tokenizer.offsets("aéb")
    assert ids.tolist() == [1, 2, 4 + 0xC3, 4 + 0xA9, 3]
    assert spans == [(0, 0), (0, 1), (1, 2), (1, 2), (2, 3)]
    assert tokenizer.decode(tokenizer.encode_ordinary("a é☃b")) == "a é☃b"
    assert tokenizer.decode(tokenizer.sample("a é☃b")) == "a é☃b"


def test_user_defined_pieces_always_win():
    tokenizer = UnigramTokenizer(
        ["<unk>", "▁", "a", "b", "▁ab", "<sep>"],
        np.array([0, -1, -1, -1, -9, 0], np.float32),
        kinds=[2, 1, 1, 1, 4, 4],
        normalizer=Spaces(),
    )
    assert tokenizer.encode_ordinary("ab<sep>b").tolist() == [4, 5, 3]


def test_special_tokens():
    pieces = ["<unk>", "<s>", "</s>", *letters]
    scores = np.array([0, 0, 0, *letters.values()], np.float32)
    tokenizer = UnigramTokenizer(pieces, scores, kinds=[2, 3, 3, 1, 1, 1], normalizer=Spaces())
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.special_tokens) == (2, 2, {"<s>": 1, "</s>": 2})
    assert tokenizer.encode("a</s>b", {"</s>"}).tolist() == [3, 4, 2, 3, 5]
    assert tokenizer.encode("a</s>", disallowed_special=()).tolist() == [3, 4, 0]
    with pytest.raises(SpecialTokenError, match="at character 1"):
        tokenizer.encode("a</s>")


@pytest.mark.parametrize("cut", ["a▁b", "▁▁"])
def test_pieces_with_inner_spaces(cut):
    """Where a piece crosses words, or holds several spaces, text is not cut there."""
    log_p = letters | {cut: -1.0, "▁a": -3.0}
    tokenizer = make(log_p, normalizer=Spaces())
    for text in itertools.product("ab ", repeat=5):
        plain = tokenizer.normalizer.normalize("".join(text))
        found = tuple(tokenizer.pieces[i] for i in tokenizer.encode_ordinary("".join(text)))
        ways = all_ways(plain, log_p)
        assert ways[found] == max(ways.values())


@needs_data
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", ["english.txt", "code.txt", "multilingual.txt"])
def test_ids_equal_sentencepieces(name, file):
    """Line by line, and as one text so long that the running sum starts afresh several times."""
    theirs: Any = sentencepiece.SentencePieceProcessor(model_file=str(Path(DATA or "", "vocab", f"{name}.model")))
    ids = range(theirs.vocab_size())
    kinds = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 1 for i in ids]
    scores = np.array([theirs.get_score(i) for i in ids], np.float32)
    pieces = [theirs.id_to_piece(i) for i in ids]
    mine = UnigramTokenizer(pieces, scores, kinds=kinds, normalizer=Spaces(theirs.normalize))
    with Path(DATA or "", "text", file).open(encoding="utf-8") as lines:
        text = lines.read(150_000)
    lines = text.split("\n")
    flat, offsets = mine.encode_batch(lines, num_threads=2)
    assert flat.tolist() == list(itertools.chain(*theirs.encode(lines)))
    assert mine.encode_ordinary(lines[0]).tolist() == flat[: offsets[1]].tolist()
    assert mine.encode_ordinary(text).tolist() == theirs.encode(text)


def test_ten_million_letters():
    tokenizer = make(letters | {"aa": -3.0, "aaaa": -3.5}, normalizer=Spaces())
    assert tokenizer.count("a" * 10_000_000) == 2_500_001


def test_refused():
    with pytest.raises(VocabularyError, match="twice"):
        UnigramTokenizer(["<unk>", "a", "a"], np.zeros(3, np.float32), normalizer=Spaces())
    with pytest.raises(VocabularyError, match="3 pieces, 2 scores"):
        UnigramTokenizer(["<unk>", "a", "b"], np.zeros(2, np.float32), normalizer=Spaces())
    with pytest.raises(VocabularyError, match="unknown token has id 9"):
        UnigramTokenizer(["<unk>", "a"], np.zeros(2, np.float32), unk_id=9, normalizer=Spaces())
    with pytest.raises(VocabularyError, match="score nan"):
        UnigramTokenizer(["<unk>", "a"], np.array([0, np.nan], np.float32), normalizer=Spaces())
    with pytest.raises(VocabularyError, match="<0x00> is missing"):
        UnigramTokenizer(["<unk>", "a"], np.zeros(2, np.float32), byte_fallback=True, normalizer=Spaces())
    with pytest.raises(TokenIdError, match="id 4 at position 1"):
        make(letters, normalizer=Spaces()).decode([1, 4])
