"""Extending: old ids stay, new ones come behind, and Hugging Face's library gives the same ids."""

import os
from pathlib import Path

import pytest

from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_train import extend_on_words, train_bpe
from luthier.tokenizers.formats import load_tiktoken, load_tokenizer, save_tokenizer
from luthier.tokenizers.word_counts import count_words
from tokenizers import Tokenizer as HuggingFace

DATA = os.environ.get("LUTHIER_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
GENERAL = "the cat sat on the mat and the dog ran to the man " * 20
FIELD = "purfling kerfing purflings kerfings the kerfing " * 20


def base(**settings) -> Tokenizer:
    return train_bpe([GENERAL], 300, pattern="gpt2", **settings)


def test_new_ids_come_behind_and_pack_better():
    old = base()
    trained = extend_on_words(old, count_words([FIELD], "gpt2"), 12)
    new = trained.tokenizer
    assert new.tokens[: old.vocab_size] == old.tokens
    assert new.vocab_size == old.vocab_size + 12
    assert new.merges[: len(old.merges)].tolist() == old.merges.tolist()
    assert new.special_tokens == old.special_tokens
    assert (trained.before, trained.after) == (old.count(FIELD), new.count(FIELD))
    assert trained.after < trained.before
    assert new.decode(new.encode_ordinary(FIELD)) == FIELD


def test_goes_on_where_training_stopped():
    """Extending on the same text is training on."""
    words = count_words([GENERAL + FIELD], "gpt2")
    short, long = (train_bpe([GENERAL + FIELD], size, pattern="gpt2") for size in (290, 310))
    extended = extend_on_words(short, words, 20).tokenizer
    assert extended.tokens == long.tokens
    assert extended.merges.tolist() == long.merges.tolist()


def test_added_tokens_are_walls_and_gaps_get_names(tmp_path):
    """No merge joins what always stands alone; an id for nothing is named, for the file has no room for gaps."""
    old = base()
    n = old.vocab_size
    old = Tokenizer(
        [*old.tokens, b"<sep>", b"", b"kerf"],
        old.merges,
        pattern="gpt2",
        special_tokens=old.special_tokens,
        added_tokens={"<sep>": n, "kerf": n + 2},
    )
    new = extend_on_words(old, count_words(["kerfing kerfing kerfing"], "gpt2"), 8).tokenizer
    assert new.tokens[: n + 1] == old.tokens[: n + 1]
    assert new.special_tokens[f"<|unused {n + 1}|>"] == n + 1
    assert not any(b"kerf" in token for token in new.tokens[n + 3 :])
    assert b"ing" in new.tokens[n + 3 :]
    save_tokenizer(new, tmp_path)
    assert_equal_elsewhere(tmp_path, new, "kerfing <sep> kerf ing")


def assert_equal_elsewhere(folder: Path, mine: Tokenizer, text: str) -> None:
    theirs = HuggingFace.from_file(str(folder / "tokenizer.json"))
    assert theirs.encode(text, add_special_tokens=False).ids == mine.encode_ordinary(text).tolist()
    assert load_tokenizer(folder).encode_ordinary(text).tolist() == mine.encode_ordinary(text).tolist()


@needs_data
@pytest.mark.parametrize("source", ["tiktoken", "tokenizer.json"])
def test_a_known_tokenizer_learns_code(source, tmp_path):
    """r50k by tiktoken's ranks (whole pieces, a gap before the special token) and GPT-NeoX's tokenizer.json (NFC,
    added tokens of blanks) on Python and C."""
    folder = Path(DATA or "", "vocab")
    if source == "tiktoken":
        old = load_tiktoken(folder / "r50k_base.tiktoken", pattern="gpt2", special_tokens={"<|endoftext|>": 50_260})
    else:
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "tokenizer.json").write_bytes((folder / "gpt_neox_20b_tokenizer.json").read_bytes())
        old = load_tokenizer(tmp_path / "old")
    text = Path(DATA or "", "text", "code.txt").read_text(encoding="utf-8")[:150_000]
    words = count_words([text], old.pattern)
    trained = extend_on_words(old, words, 300)
    new = trained.tokenizer
    named = [i for i, token in enumerate(old.tokens) if not token]
    assert [t for i, t in enumerate(new.tokens[: old.vocab_size]) if i not in named] == [t for t in old.tokens if t]
    assert new.vocab_size == old.vocab_size + 300
    assert new.count(text) < old.count(text)
    save_tokenizer(new, tmp_path / "new")
    assert_equal_elsewhere(tmp_path / "new", new, text[:50_000])
