"""Another vocabulary for a model: old logits as they were, new rows from the pieces, and it opens elsewhere."""

import pytest
import torch

from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import ModelConfig
from luthier.models.resize import ResizeError, extend_context, extends, replaced_pieces, resize_vocabulary
from luthier.models.rotary import rotary_frequencies
from luthier.models.transformer import ContextError, Transformer
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


def test_new_rows_from_vectors():
    grown, plain = model(False), model(False)
    vector = torch.arange(32.0)
    resize_vocabulary(plain, OLD, NEW)
    resize_vocabulary(grown, OLD, NEW, vectors={NEW.vocab_size - 1: vector})
    assert torch.equal(grown.embed_tokens.weight[-1], vector)
    assert torch.equal(grown.embed_tokens.weight[:-1], plain.embed_tokens.weight[:-1])
    assert torch.equal(grown.lm_head.weight, plain.lm_head.weight)
    for vectors, word in (({3: vector}, "knows already"), ({NEW.vocab_size - 1: vector[:5]}, r"\[5\]; 32 finite")):
        untouched = model(False)
        with pytest.raises(ResizeError, match=word):
            resize_vocabulary(untouched, OLD, NEW, vectors=vectors)
        assert untouched.config.vocab_size == OLD.vocab_size


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_a_longer_context_keeps_what_it_must(kind, tmp_path):
    shape = ModelConfig(61, 64, 48, 2, 2, 2, head_dim=32, max_position_embeddings=64)
    before = Transformer(shape, seed=1).eval()
    short, long = torch.arange(64)[None] % 61, torch.arange(256)[None] % 61
    expected = before(short)
    with pytest.raises(ContextError):
        before(long)
    old = rotary_frequencies(shape)[0]
    before.config = extend_context(shape, 256, kind)
    new = rotary_frequencies(before.config, 256)[0]
    assert before.config.context == 256 and bool(before(long).isfinite().all())
    slower = 4 * 256 / 64 - 3 if kind == "dynamic" else 4  # the slowest pair
    assert float(old[-1] / new[-1]) == pytest.approx(slower, rel=1e-6)
    assert float(old[0] / new[0]) == pytest.approx(4 if kind == "linear" else 1)  # the fastest as before
    assert torch.equal(before(short), expected) == (kind == "dynamic")
    with pytest.raises(ContextError):
        before(torch.arange(257)[None] % 61)
    save_model(before, tmp_path)
    assert load_model(tmp_path).config == before.config
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()(long).logits
    assert float((theirs - before(long)).detach().abs().max() / theirs.detach().abs().max()) <= 1e-5


def test_a_context_that_cannot_be_is_refused():
    for shape, tokens, word in (
        (ModelConfig(), 256, "no longer"),
        (ModelConfig(model_type="gpt2", num_key_value_heads=6), 512, "learned"),
        (extend_context(ModelConfig(), 512), 1024, "scaled already"),
    ):
        with pytest.raises(ResizeError, match=word):
            extend_context(shape, tokens)
