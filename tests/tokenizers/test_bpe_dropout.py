"""BPE-dropout: ids of the book with the same coins, shares of outcomes as Hugging Face's, the text always kept."""

import itertools
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_dropout import coins, drop_by_the_book
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import tokenizer_files
from luthier.tokenizers.pretokenize import split
from tokenizers import Tokenizer as HuggingFace

TEXT = "The soundboard is spruce; the soundboard's grain is straight. aa aaa aaaa aaaaa board breadboard sound " * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], 340)


@settings(max_examples=200)
@given(
    text=st.text("abrdesoun ß", max_size=60) | st.just("a" * 300),
    dropout=st.sampled_from([0.01, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 1 << 66),
)
def test_ids_are_those_of_the_book_with_the_same_coins(tokenizer, text, dropout, seed):
    thrown = coins(dropout, seed)
    byte_ids = [tokenizer.ids_of_bytes.get(bytes([b]), -1) for b in range(256)]
    wanted = []
    for piece in split(text, tokenizer.pattern):
        wanted += drop_by_the_book(piece.encode(), tokenizer.ranks, byte_ids, lambda: next(thrown))
    ids = tokenizer.encode_dropout(text, dropout, seed)
    assert ids.dtype == np.int32
    assert ids.tolist() == wanted
    assert tokenizer.decode(ids) == text


def test_none_is_encoding_and_all_is_bytes(tokenizer):
    assert tokenizer.encode_dropout(TEXT, 0.0).tolist() == tokenizer.encode_ordinary(TEXT).tolist()
    assert tokenizer.encode_dropout(TEXT, 1.0).tolist() == [tokenizer.ids_of_bytes[bytes([b])] for b in TEXT.encode()]
    assert tokenizer.encode_dropout("", 0.5).tolist() == []
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected a probability"):
            tokenizer.encode_dropout(TEXT, wrong)


def test_the_seed_decides(tokenizer):
    first, again = tokenizer.encode_dropout(TEXT, 0.1, 1), tokenizer.encode_dropout(TEXT, 0.1, 1)
    assert first.tolist() == again.tolist() != tokenizer.encode_dropout(TEXT, 0.1, 2).tolist()


def test_coins_fall_as_often_as_said():
    for dropout in (0.1, 0.5):
        share = sum(islice(coins(dropout, 7), 20_000)) / 20_000
        assert abs(share - dropout) < 5 * (dropout * (1 - dropout) / 20_000) ** 0.5


def all_ways(ids: tuple[int, ...], ranks, dropout: float) -> Counter[tuple[int, ...]]:
    """Every outcome and its probability by the paper's algorithm: all coins are thrown, then the best that is left."""
    places = [i for i, pair in enumerate(itertools.pairwise(ids)) if pair in ranks]
    outcomes: Counter[tuple[int, ...]] = Counter()
    for dropped in itertools.product([True, False], repeat=len(places)):
        chance = float(np.prod([dropout if d else 1 - dropout for d in dropped]))
        left = [(ranks[ids[i], ids[i + 1]], i) for i, d in zip(places, dropped, strict=True) if not d]
        if not left:
            outcomes[ids] += chance  # type: ignore[assignment]
            continue
        (_, new), i = min(left)
        for outcome, share in all_ways((*ids[:i], new, *ids[i + 2 :]), ranks, dropout).items():
            outcomes[outcome] += share * chance  # type: ignore[assignment]
    return outcomes


def test_outcomes_are_as_frequent_as_the_paper_and_hugging_face_have_them(tokenizer):
    """Chi-square against the probabilities, found by adding up every fall of the coins; and of Hugging Face's, too."""
    word, dropout, draws = " board", 0.3, 4000
    byte_ids = tuple(tokenizer.ids_of_bytes[bytes([b])] for b in word.encode())
    chances = all_ways(byte_ids, tokenizer.ranks, dropout)
    assert abs(sum(chances.values()) - 1) < 1e-9 and len(chances) > 5
    theirs = HuggingFace.from_str(tokenizer_files(tokenizer)["tokenizer.json"])
    theirs.model.dropout = dropout
    ours = Counter(tuple(tokenizer.encode_dropout(word, dropout, seed).tolist()) for seed in range(draws))
    for drawn in (ours, Counter(tuple(theirs.encode(word).ids) for _ in range(draws))):
        assert drawn.keys() <= chances.keys()
        square = sum((drawn[way] - draws * p) ** 2 / (draws * p) for way, p in chances.items())
        free = len(chances) - 1
        assert square < free + 6 * (2 * free) ** 0.5


def test_added_tokens_stay_whole(tokenizer):
    size = tokenizer.vocab_size
    more = Tokenizer(
        [*tokenizer.tokens, b"<tool>"],
        tokenizer.merges,
        special_tokens=tokenizer.special_tokens,
        added_tokens={"<tool>": size},
    )
    ids = more.encode_dropout("board<tool>board", 0.5)
    assert ids.tolist().count(size) == 1 and more.decode(ids) == "board<tool>board"


def test_a_long_piece_is_linear(tokenizer):
    text = "board" * 40_000
    assert tokenizer.decode(tokenizer.encode_dropout(text, 0.1)) == text
