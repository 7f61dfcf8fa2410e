"""Training a unigram vocabulary: its parts against brute force, the whole against sentencepiece."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers import unigram_train
from luthier.tokenizers.bpe import VocabularyError
from luthier.tokenizers.unigram import UnigramTokenizer
from luthier.tokenizers.unigram_seed import find_seeds, read_lattice, sort_suffixes
from luthier.tokenizers.unigram_train import expected_by_the_book, train_unigram

DATA = os.environ.get("LUTHIER_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
TEXT = "the soundboard is spruce ; the soundboards of 12 lutes are spruce , not maple . naïve 東京 и москва " * 3


class Spaces:
    def normalize(self, text):
        return "▁" + "▁".join(text.split()) if text.split() else ""

    def to_utf8(self, texts):
        parts = [self.normalize(text).encode() for text in texts]
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        return np.frombuffer(b"".join(parts), np.uint8), starts

    def normalize_with_places(self, text):
        raise NotImplementedError

    def restore(self, text):
        return text.removeprefix(" ")


def train(texts, size, **settings) -> UnigramTokenizer:
    return train_unigram(texts, size, **{"normalizer": Spaces(), "special_tokens": ("<s>", "</s>"), **settings})


@settings(max_examples=100)
@given(text=st.lists(st.integers(0, 3), min_size=1, max_size=60), longest=st.sampled_from([1, 2, 5, 16]))
def test_suffixes_are_sorted(text, longest):
    order = sort_suffixes(np.array(text, np.int32), longest)
    assert sorted(order.tolist()) == list(range(len(text)))
    assert all(text[a:][:longest] <= text[b:][:longest] for a, b in pairwise(order.tolist()))


word_lists = st.dictionaries(
    st.text(st.sampled_from("ab"), max_size=6).map("▁{}".format), st.integers(1, 5), min_size=1
)


def corpus_of(words: dict[str, int]) -> tuple[Any, str]:
    return unigram_train._corpus(Counter(words), 1.0), "".join(words)


@settings(max_examples=50)
@given(words=word_lists, longest=st.integers(2, 5))
def test_seeds_and_lattice(words, longest):
    """Each seed is worth its occurrences times its length, any substring that occurs in two words in two ways is one,
    and the lattice holds exactly the occurrences of the seeds."""
    corpus, _ = corpus_of(words)
    seeds, order = find_seeds(corpus.text, corpus.weights, corpus.scripts, longest, 1000)
    letters = "\0" + corpus.alphabet
    text = "".join(letters[c] for c in corpus.text)
    pieces = [text[i : i + n] for i, n in zip(seeds.where.tolist(), seeds.lengths.tolist(), strict=True)]
    assert len(set(pieces)) == len(pieces)

    def places(piece):
        return [i for i in range(len(text)) if text.startswith(piece, i)]

    assert seeds.worth.tolist() == [sum(int(corpus.weights[i]) for i in places(p)) * len(p) for p in pieces]
    branching = {
        piece
        for n in range(2, longest + 1)
        for i in range(len(text) - n)
        if "\0" not in (piece := text[i : i + n]) and "▁" not in piece[1:]
        if len({text[j + n] for j in places(piece)}) > 1
    }
    assert branching <= set(pieces)
    lattice = read_lattice(corpus.text, order, seeds)
    edges = {
        (i, pieces[lattice.pieces[e]], int(lattice.lengths[e]))
        for i in range(len(text))
        for e in range(lattice.first[i], lattice.first[i + 1])
    }
    assert edges == {(i, piece, len(piece)) for piece in pieces for i in places(piece)}
    assert len(lattice.pieces) == len(edges)


def prepared(words):
    corpus, _ = corpus_of(words)
    seeds, order = find_seeds(corpus.text, corpus.weights, corpus.scripts, 16, 1000)
    scores = np.log(seeds.worth / seeds.worth.sum())
    state = unigram_train._State(seeds.where, seeds.lengths, scores, read_lattice(corpus.text, order, seeds))
    return corpus, state, unigram_train._parts(corpus, state.lattice)


@settings(max_examples=30)
@given(words=word_lists)
def test_expected_counts_equal_the_book(words):
    corpus, state, parts = prepared(words)
    letters = "\0" + corpus.alphabet
    text = "".join(letters[c] for c in corpus.text)
    pieces = [text[i : i + n] for i, n in zip(state.where.tolist(), state.lengths.tolist(), strict=True)]
    with ThreadPoolExecutor(2) as pool:
        expected, _ = unigram_train._expect(corpus, state, parts, pool)
    book = expected_by_the_book(words, dict(zip(pieces, np.exp(state.scores), strict=True)))
    np.testing.assert_allclose(expected, [book[piece] for piece in pieces], rtol=1e-9, atol=1e-12)


def test_likelihood_rises():
    """EM without the prior cannot lower the likelihood; a word of a thousand letters tests the scaling."""
    words = {f"▁{word}": count for word, count in Counter(TEXT.split()).items()} | {"▁" + "lute" * 200: 2}
    corpus, state, parts = prepared(words)
    likelihoods = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(6):
            expected, likelihood = unigram_train._expect(corpus, state, parts, pool)
            likelihoods.append(likelihood)
            with np.errstate(divide="ignore"):
                state = state._replace(scores=np.log(expected / expected.sum()))
    assert np.isfinite(likelihoods).all() and (np.diff(likelihoods) > -1e-9).all()


def test_digamma():
    """ψ(1) = -γ; ψ(1/2) = -γ - 2 log 2; ψ(x + 1) = ψ(x) + 1/x."""
    gamma = 0.57721566490153286
    x = np.array([1.0, 0.5, 3.25, 4.25, 1e9])
    one, half, a, b, large = unigram_train._digamma(x)
    assert one == pytest.approx(-gamma, abs=1e-8) and half == pytest.approx(-gamma - 2 * np.log(2), abs=1e-8)
    assert b == pytest.approx(a + 1 / 3.25, abs=1e-8) and large == pytest.approx(np.log(1e9), abs=1e-8)


def test_layout_and_pieces():
    tokenizer = train([TEXT], 50, character_coverage=1.0)
    assert tokenizer.pieces[:3] == ["<unk>", "<s>", "</s>"] and tokenizer.vocab_size == 50
    assert {"▁", *TEXT} - {" "} <= set(tokenizer.pieces)
    assert (np.diff(tokenizer.scores[3:]) <= 0).all()
    assert not any("▁" in piece[1:] for piece in tokenizer.pieces)
    assert not any(any(c.isalpha() for c in p) and any(c in "0123456789;,." for c in p) for p in tokenizer.pieces[3:])
    assert tokenizer.decode(tokenizer.encode_ordinary("the 12 lutes")) == "the 12 lutes"
    assert "▁soundboard" in tokenizer.pieces


def test_byte_fallback_and_coverage():
    tokenizer = train([TEXT], 320, byte_fallback=True, character_coverage=0.9)
    assert tokenizer.pieces[3] == "<0x00>" and "京" not in tokenizer.pieces
    assert tokenizer.decode(tokenizer.encode_ordinary("東京 spruce")) == "東京 spruce"


def test_same_for_any_number_of_threads():
    one, two = (train([TEXT, "maple lutes"], 80, num_threads=n) for n in (1, 3))
    assert one.pieces == two.pieces and one.scores.tobytes() == two.scores.tobytes()


def test_long_lines_are_not_skipped():
    """A line of a million characters, and one word of nearly a million: both are learned from."""
    tokenizer = train(["spruce maple " * 77_000 + "\n" + "xyz" * 300_000], 40, character_coverage=1.0)
    assert {"▁spruce", "▁maple"} <= set(tokenizer.pieces)
    assert len(tokenizer.encode_ordinary("xyz" * 100)) < 60


def test_refused():
    with pytest.raises(VocabularyError, match="too small"):
        train([TEXT], 10)
    with pytest.raises(VocabularyError, match="must be different"):
        train([TEXT], 100, special_tokens=("<s>", "<s>"))
    with pytest.raises(VocabularyError, match="no text"):
        train([" \n "], 100)


@needs_data
@pytest.mark.parametrize(("file", "size"), [("wikitext2_valid.txt", 1500), ("multilingual.txt", 3000)])
def test_likelihood_at_least_sentencepieces(file, size, tmp_path):
    """Log-likelihood of the training text, the same words segmented by either model, within half a percent."""
    with Path(DATA or "", "text", file).open(encoding="utf-8") as stream:
        text = " ".join(stream.read(100_000).replace("\ufeff", "").split())
    (tmp_path / "text").write_text("\n".join(text[i : i + 1000] for i in range(0, len(text), 1000)))
    lines = (tmp_path / "text").read_text().split("\n")
    settings = {"vocab_size": size, "normalization_rule_name": "identity", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.Train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), max_sentence_length=10**6, **settings
    )
    model: Any = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    ids = range(model.vocab_size())
    scores = np.array([model.get_score(i) for i in ids], np.float32)
    kinds = [2, 3, 3, *[1] * (len(ids) - 3)]
    theirs = UnigramTokenizer([model.id_to_piece(i) for i in ids], scores, kinds=kinds, normalizer=Spaces())
    mine = train(lines, size)
    unknown = {c for c in {*text} - {" "} if c not in mine.pieces or c not in theirs.pieces}
    plain = ["".join(c for c in line if c not in unknown) for line in lines]
    ours, other = (sum(tokenizer.log_likelihood(line) for line in plain) for tokenizer in (mine, theirs))
    assert ours > 1.005 * other
