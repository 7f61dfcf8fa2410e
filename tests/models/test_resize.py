"""Another vocabulary for a model: old logits as they were, new rows from the pieces, and it opens elsewhere."""

import pytest
import torch

from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import ModelConfig
from luthier.models.resize import extends, replaced_pieces, resize_vocabulary
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe_train import extend_on_words, train_bpe
from luthier.tokenizers.formats import save_tokenizer
from luthier.tokenizers.word_counts import count_words

OLD = train_bpe(["the cat sat on the mat and the dog ran to the man " * 20], 300, pattern="gpt2")
NEW = extend_on_words(OLD, count_words(["purfling kerfing purflings kerfings " * 9], "gpt2"), 20).tokenizer
TEXT = "the cat sat on kerfing"


def model(tied: bool, rows: int = OLD.vocab_size) -> Transformer:
    shape = ModelConfig(rows, 32, 48, 2, 4, 2, tie_word_embeddings=tied)
    return Transformer(shape, seed=1).eval()


def ids(tokenizer, text=TEXT):
    return torch.from_numpy(tokenizer.encode_ordinary(text)).long()[None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 7])
def test_growing_keeps_every_old_logit(tied, spare):
    """`spare` rows behind the tokenizer's last id, as models padded to a round number have."""
    grown = model(tied, OLD.vocab_size + spare)
    with torch.no_grad():
        before = grown(ids(OLD))
        assert resize_vocabulary(grown, OLD, NEW) == NEW.vocab_size - OLD.vocab_size
        after = grown(ids(OLD))
    assert after.shape[-1] == grown.config.vocab_size == NEW.vocab_size
    assert torch.equal(after[..., : OLD.vocab_size], before[..., : OLD.vocab_size])


def test_new_rows_are_the_mean_of_what_they_replace():
    grown = model(False)
    rows = {"embed": grown.embed_tokens.weight.detach().clone(), "head": grown.lm_head.weight.detach().clone()}
    resize_vocabulary(grown, OLD, NEW)
    for i in range(OLD.vocab_size, NEW.vocab_size):
        spelled = OLD.encode_ordinary(NEW.tokens[i].decode())
        assert len(spelled) > 1
        for name, weight in (("embed", grown.embed_tokens.weight), ("head", grown.lm_head.weight)):
            torch.testing.assert_close(weight[i], rows[name][spelled.tolist()].mean(0))


def test_shrinking_back_is_the_model_before():
    small = model(True)
    expected = {name: weight.clone() for name, weight in small.state_dict().items()}
    resize_vocabulary(small, OLD, NEW)
    assert resize_vocabulary(small, NEW, OLD) == 0
    assert all(torch.equal(weight, expected[name]) for name, weight in small.state_dict().items())
    assert small.config.vocab_size == OLD.vocab_size


def test_another_order_of_ids_moves_the_rows():
    other = train_bpe(["the cat sat " * 9], 290, pattern="gpt2", special_tokens=("<|pad|>", "<|endoftext|>"))
    pieces = replaced_pieces(OLD, other)
    assert pieces[:2] == [[OLD.special_tokens["<|pad|>"]], [OLD.special_tokens["<|endoftext|>"]]]
    assert pieces[2] == [OLD.ids_of_bytes[b"!"]]
    moved, before = model(True), model(True)
    resize_vocabulary(moved, OLD, other)
    assert torch.equal(moved.embed_tokens.weight[2], before.embed_tokens.weight[OLD.ids_of_bytes[b"!"]])


def test_what_extends_what():
    assert extends(NEW, OLD)
    assert not extends(OLD, NEW)
    assert not extends(train_bpe(["dogs and cats " * 9], 320, pattern="gpt2"), OLD)


def test_a_model_with_too_few_rows_is_refused():
    with pytest.raises(ValueError, match=f"280 rows, its tokenizer {OLD.vocab_size} ids"):
        resize_vocabulary(model(True, 280), OLD, NEW)


@pytest.mark.parametrize("tied", [True, False])
def test_opens_in_transformers(tied, tmp_path):
    transformers = pytest.importorskip("transformers")
    grown = model(tied)
    resize_vocabulary(grown, OLD, NEW)
    save_model(grown, tmp_path)
    save_tokenizer(NEW, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.config.vocab_size == NEW.vocab_size
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == NEW.encode_ordinary(TEXT).tolist()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids(NEW)).logits, load_model(tmp_path)(ids(NEW)), atol=1e-5, rtol=1e-4)
