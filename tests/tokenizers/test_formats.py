"""Files: ids stay the same through tokenizer.json, `tokenizers`, `transformers`, tiktoken; unknown parts are named."""

import copy
import json
import os
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public
from tiktoken.load import load_tiktoken_bpe

from luthier.tokenizers.bpe import BYTE_ORDER, Tokenizer, VocabularyError
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import (
    RANKS,
    TokenizerFileError,
    load_tiktoken,
    load_tokenizer,
    save_tiktoken,
    save_tokenizer,
    spell,
    unspell,
)
from luthier.tokenizers.pretokenize import PATTERNS, PatternError
from luthier.tokenizers.vocab_merges import load_vocab_merges, save_vocab_merges
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HuggingFace

DATA = os.environ.get("LUTHIER_TEST_DATA")
TEXT = (
    "The soundboard's grain IS STRAIGHT; it's 1,250 °C — naïve café, 東京 🎻\r\n\tif x:  y = x1y22 # ok\n\n  End.  \n "
    "HelloWorld's  a 12 b² ''s <|im_start|>user\nHi<|im_end|>\n<|endoftext|>"
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tokenizer, its folder, and its tokenizer.json as Python values."""
    tokenizer, folder = train_bpe([TEXT] * 3, 330), tmp_path_factory.mktemp("tokenizer")
    tokenizer.chat_template = TEMPLATE
    save_tokenizer(tokenizer, folder)
    return tokenizer, folder, json.loads((folder / "tokenizer.json").read_text())


def test_spelling_is_hugging_faces():
    assert {spell(bytes([b])) for b in range(256)} == set(pre_tokenizers.ByteLevel.alphabet())
    assert [spell(bytes([b])) for b in BYTE_ORDER] == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert spell(" né\n".encode()) == "ĠnÃ©Ċ"
    assert unspell("ĠnÃ©Ċ") == " né\n".encode()


@pytest.mark.parametrize("pattern", [*PATTERNS, r"\p{L}+|\d| "])
def test_every_pattern_survives_the_file(pattern, tmp_path):
    tokenizer = train_bpe([TEXT] * 3, 320, pattern=pattern)
    save_tokenizer(tokenizer, tmp_path)
    again, theirs = load_tokenizer(tmp_path), HuggingFace.from_file(str(tmp_path / "tokenizer.json"))
    assert again.pattern == pattern
    ids = tokenizer.encode(TEXT, "all").tolist()
    assert again.encode(TEXT, "all").tolist() == theirs.encode(TEXT).ids == ids
    assert theirs.decode(ids, skip_special_tokens=False) == TEXT
    assert (again.tokens, again.merges.tolist()) == (tokenizer.tokens, tokenizer.merges.tolist())
    assert (again.special_tokens, again.eos_id, again.pad_id) == (tokenizer.special_tokens, 0, 3)


def test_transformers_opens_the_folder_with_the_same_ids(parts):
    transformers = pytest.importorskip("transformers")
    tokenizer, folder, _ = parts
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT, "all").tolist()
    assert theirs.decode(theirs(TEXT)["input_ids"]) == TEXT
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (0, 3, tokenizer.vocab_size)
    turns = [{"role": "user", "content": "Hi"}]
    rendered = "<|im_start|>user\nHi<|im_end|>\n"
    assert theirs.apply_chat_template(turns, tokenize=False) == rendered
    ids = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert ids == tokenizer.encode(rendered, "all").tolist()
    assert load_tokenizer(folder).chat_template == TEMPLATE


def test_what_transformers_saves_is_read_again(parts, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer, folder, _ = parts
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode(TEXT, "all").tolist() == tokenizer.encode(TEXT, "all").tolist()
    assert again.chat_template == TEMPLATE


def test_other_keys_are_kept(parts, tmp_path):
    tokenizer, _, whole = parts
    whole = copy.deepcopy(whole)
    begin = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    whole["post_processor"] = json.loads(
        processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]).__getstate__()
    )
    assert whole["post_processor"]["single"] == list(begin)
    _write(tmp_path, whole, {"model_max_length": 77, "eos_token": {"content": "<|im_end|>"}, "mine": [1]})
    again = load_tokenizer(tmp_path)
    assert again.eos_id == 2
    save_tokenizer(again, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert (config["model_max_length"], config["mine"], config["eos_token"]) == (77, [1], "<|im_end|>")
    theirs = HuggingFace.from_file(str(tmp_path / "again" / "tokenizer.json"))
    assert theirs.encode("a").ids == [1, *tokenizer.encode_ordinary("a")]


def foreign(normalizer, pre_tokenizer, *, ignore_merges=False) -> HuggingFace:
    """A tokenizer as other makers build it, trained by Hugging Face's own trainer."""
    tokenizer = HuggingFace(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>", "  "])
    return tokenizer


def byte_level(*, use_regex=True):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(name, behavior="isolated", invert=False):
    splitter = pre_tokenizers.Split(Regex(PATTERNS[name]), behavior, invert)
    return pre_tokenizers.Sequence([splitter, byte_level(use_regex=False)])


@pytest.mark.parametrize(
    ("like", "tokenizer"),
    [
        ("gpt2", foreign(None, byte_level())),
        ("llama3", foreign(None, split("llama3"), ignore_merges=True)),
        ("qwen2", foreign(normalizers.NFC(), split("qwen2"))),
        ("smollm", foreign(None, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level()]))),
        ("llama3", foreign(normalizers.Sequence([normalizers.NFC()]), split("llama3", "removed", True))),
    ],
)
def test_foreign_files(like, tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    text = TEXT + " cafe\u0301 <tool_call>x   y"
    assert ours.pattern == like
    assert ours.encode(text, "all").tolist() == tokenizer.encode(text).ids
    save_tokenizer(ours, tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.encode(text, "all").tolist() == tokenizer.encode(text).ids
    assert (
        HuggingFace.from_file(str(tmp_path / "again" / "tokenizer.json")).encode(text).ids == tokenizer.encode(text).ids
    )


def test_merges_in_the_older_spelling(parts, tmp_path):
    tokenizer, _, whole = parts
    whole = copy.deepcopy(whole)
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    _write(tmp_path, whole)
    assert load_tokenizer(tmp_path).merges.tolist() == tokenizer.merges.tolist()


def _write(folder: Path, whole, config=None):
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _spoil(key, value):
    def change(whole):
        *path, last = key.split(".")
        for step in path:
            whole = whole[step]
        whole[last] = value

    return change


def _again(whole):
    whole["model"]["vocab"]["zz"] = 300


def _gap(whole):
    whole["model"]["vocab"]["zz"] = 1000


def _unknown(whole):
    whole["model"]["merges"].append(["a", "nowhere"])


def _flag(whole):
    whole["added_tokens"][0]["lstrip"] = True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil("model.type", "WordPiece"), "the model is WordPiece"),
        (_spoil("model.dropout", 0.1), r"dropout=0\.1"),
        (_spoil("model.new", 1), "the model has an unknown part 'new'"),
        (_spoil("new", None), "unknown part 'new'"),
        (_spoil("post_processor", {"type": "New"}), "post_processor New is not supported"),
        (_spoil("decoder", {"type": "Sequence", "decoders": [{"type": "Fuse"}]}), "decoder Fuse is not supported"),
        (_spoil("normalizer", {"type": "NFKC"}), "normalizer NFKC is not supported"),
        (_spoil("pre_tokenizer", {"type": "Metaspace"}), "pre-tokenizer Metaspace is not supported"),
        (_spoil("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}), "add_prefix_space=true"),
        (_spoil("pre_tokenizer", None), "pre-tokenizer none"),
        (_spoil("model.vocab", None), "no 'vocab' object"),
        (_again, "id 300 is given twice"),
        (_gap, "no token has id 330"),
        (_unknown, "merge 70 joins 'nowhere', which is not in the vocabulary"),
        (_flag, "lstrip=true"),
    ],
)
def test_what_is_not_ours_is_named(parts, tmp_path, spoil, message):
    whole = copy.deepcopy(parts[2])
    spoil(whole)
    _write(tmp_path, whole)
    with pytest.raises(TokenizerFileError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).count(str(tmp_path / "tokenizer.json")) == 1


def test_files_that_are_none(tmp_path):
    with pytest.raises(TokenizerFileError, match="does not exist"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json:1:2: not valid JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("name", "message"),
    [("bert_base_uncased", "the model is without merges")],
)
def test_real_files_of_other_kinds(name, message):
    with pytest.raises(TokenizerFileError, match=message):
        load_tokenizer(Path(DATA or "", "vocab", f"{name}_tokenizer.json"))


@pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
def test_a_real_file_gpt_neox():
    """NFC, runs of blanks as added tokens, merges as text."""
    file = Path(DATA or "", "vocab", "gpt_neox_20b_tokenizer.json")
    ours, theirs = load_tokenizer(file), HuggingFace.from_file(str(file))
    for kind in ("english", "code", "multilingual"):
        text = Path(DATA or "", "text", f"{kind}.txt").read_text(encoding="utf-8")[:100_000]
        assert ours.encode(text, "all").tolist() == theirs.encode(text, add_special_tokens=False).ids


def test_tiktoken_there_and_back(parts, tmp_path):
    tokenizer, _, _ = parts
    file = tmp_path / "own.tiktoken"
    save_tiktoken(tokenizer, file)
    ranks = load_tiktoken_bpe(str(file))
    expression, special = PATTERNS[tokenizer.pattern], tokenizer.special_tokens
    theirs = tiktoken.Encoding("own", pat_str=expression, mergeable_ranks=ranks, special_tokens=special)
    assert theirs.encode(TEXT, allowed_special="all") == tokenizer.encode(TEXT, "all").tolist()
    again = load_tiktoken(file, pattern=tokenizer.pattern, special_tokens=special)
    assert again.encode(TEXT, "all").tolist() == tokenizer.encode(TEXT, "all").tolist()
    assert again.eos_id == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, b"!!! 400"], r"own\.tiktoken:327: expected a token in base64"),
        (lambda lines: [*lines, lines[-1]], "is given twice"),
        (lambda lines: [*lines[:-2], lines[-1]], "no token has rank 328"),
    ],
)
def test_tiktoken_files_that_are_none(parts, tmp_path, change, message):
    file = tmp_path / "own.tiktoken"
    save_tiktoken(parts[0], file)
    file.write_bytes(b"\n".join(change(file.read_bytes().splitlines())))
    with pytest.raises(TokenizerFileError, match=message):
        load_tiktoken(file, pattern="llama3", special_tokens=parts[0].special_tokens)


def test_tiktoken_cannot_say_another_order(parts, tmp_path):
    first = parts[0]
    turned = Tokenizer(first.tokens, first.merges[::-1].copy(), special_tokens=first.special_tokens)
    with pytest.raises(VocabularyError, match="merge 1 makes an earlier id"):
        save_tiktoken(turned, tmp_path / "x")


# ---------------------------------------------------------------- vocab.json and merges.txt


def test_vocab_and_merges_there_and_back(tmp_path):
    tokenizer = train_bpe([TEXT] * 3, 330, pattern="gpt2")
    save_vocab_merges(tokenizer, tmp_path)
    model = models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    theirs = HuggingFace(model)
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    again = load_tokenizer(tmp_path)
    ids = tokenizer.encode_ordinary(TEXT).tolist()
    assert again.encode_ordinary(TEXT).tolist() == theirs.encode(TEXT).ids == ids
    assert (again.tokens, again.merges.tolist()) == (tokenizer.tokens, tokenizer.merges.tolist())
    assert (again.special_tokens, again.eos_id, again.pattern) == (tokenizer.special_tokens, 0, "gpt2")


@pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
def test_gpt2s_own_files(tmp_path):
    """OpenAI's names and files: ids are those of tiktoken's r50k_base; written again, the files say the same."""
    folder = Path(DATA or "", "vocab")
    ours = load_vocab_merges(folder / "encoder.json", folder / "vocab.bpe")
    ranks = load_tiktoken_bpe(str(folder / "r50k_base.tiktoken"))
    special = {"<|endoftext|>": 50256}
    theirs = tiktoken.Encoding("gpt2", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens=special)
    assert (ours.vocab_size, ours.special_tokens) == (50257, special)
    for kind in ("english", "code", "multilingual"):
        text = Path(folder.parent, "text", f"{kind}.txt").read_text(encoding="utf-8")[:100_000]
        assert ours.encode_ordinary(text).tolist() == theirs.encode_ordinary(text)
    save_vocab_merges(ours, tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((folder / "encoder.json").read_text())
    assert (tmp_path / "merges.txt").read_text().split() == (folder / "vocab.bpe").read_text().split()


def test_vocab_and_merges_cannot_say_everything(parts, tmp_path):
    first = parts[0]
    same = {"pattern": first.pattern, "special_tokens": first.special_tokens}
    size = first.vocab_size
    for tokenizer, what in (
        (Tokenizer(first.tokens, first.merges, normalizer="NFC", **same), "a normalizer"),
        (Tokenizer([*first.tokens, b"<t>"], first.merges, added_tokens={"<t>": size}, **same), "added tokens"),
        (Tokenizer([*first.tokens, b""], first.merges, **same), "ids without a token"),
        (Tokenizer([*first.tokens, b"xyz"], first.merges, whole_pieces=True, **same), "tokens that no merge makes"),
    ):
        with pytest.raises(VocabularyError, match=f"{what}.* cannot say"):
            save_vocab_merges(tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vocab, merges: (vocab[:-1], merges), r"vocab\.json:1:\d+: not valid JSON"),
        (lambda vocab, merges: ("[]", merges), "expected one JSON object"),
        (lambda vocab, merges: (vocab.replace(": 300,", ': "x",'), merges), "expected one JSON object"),
        (lambda vocab, merges: (vocab[:-1] + ', "a": 400}', merges), "'a' stands twice"),
        (lambda vocab, merges: (vocab[:-1] + ', "zz": 300}', merges), "id 300 is given twice"),
        (lambda vocab, merges: (vocab[:-1] + ', "zz": 400}', merges), "no token has id 330"),
        (lambda vocab, merges: (vocab, merges + "a b c\n"), r"merges\.txt:72: expected two tokens"),
        (lambda vocab, merges: (vocab, merges + "a nowhere\n"), r"merges\.txt:72: 'nowhere' is not in the vocabulary"),
        (lambda vocab, merges: (vocab, "#version: 0.2\nq q\n"), r"merges\.txt:2: 'qq' is not in the vocabulary"),
    ],
)
def test_vocab_and_merges_that_are_none(tmp_path, change, message):
    save_vocab_merges(train_bpe([TEXT] * 3, 330, pattern="gpt2"), tmp_path)
    vocab, merges = change((tmp_path / "vocab.json").read_text(), (tmp_path / "merges.txt").read_text())
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(TokenizerFileError, match=message):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\na \xff\n")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(TokenizerFileError, match=r"merges\.txt: not UTF-8 at byte 16"):
        load_tokenizer(tmp_path)


def test_a_pattern_that_does_not_compile_is_said_with_its_file(parts, tmp_path):
    whole = copy.deepcopy(parts[2])
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(a"}
    _write(tmp_path, whole)
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json: pattern '\(a' is not a regular expression"):
        load_tokenizer(tmp_path)
    with pytest.raises(PatternError, match="missing"):
        train_bpe(["a"], 300, pattern="(a")


def test_files_that_are_not_utf8_are_named_with_the_byte(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json: not UTF-8 at byte 7"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(DATA is None, reason="needs LUTHIER_TEST_DATA")
@pytest.mark.parametrize("name", RANKS)
def test_ranks_by_their_usual_name(name):
    """Pattern and special tokens are those that tiktoken gives the same file (Qwen's: as Qwen's own code does)."""
    file = Path(str(DATA)) / "vocab" / f"{name}.tiktoken"
    tokenizer, (pattern, special) = load_tokenizer(file), RANKS[name]
    if name != "qwen":
        constructor = getattr(tiktoken_ext.openai_public, name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: load_tiktoken_bpe(str(file))
            )
            theirs = tiktoken.Encoding(**constructor())
        assert theirs._special_tokens == special
        text = TEXT + " world<|endoftext|>"
        assert tokenizer.encode(text, "all").tolist() == theirs.encode(text, allowed_special="all")
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pattern == pattern


@pytest.mark.skipif(DATA is None, reason="needs LUTHIER_TEST_DATA")
@pytest.mark.parametrize("name", RANKS)
def test_ids_that_nobody_has_shift_no_special_token(name, tmp_path):
    """cl100k_base has no token 100,256, and `tokenizers` counts added tokens on from the vocabulary's size."""
    ours = load_tokenizer(Path(str(DATA)) / "vocab" / f"{name}.tiktoken")
    save_tokenizer(ours, tmp_path)
    theirs = HuggingFace.from_file(str(tmp_path / "tokenizer.json"))
    assert {text: theirs.token_to_id(text) for text in ours.special_tokens} == ours.special_tokens
    again = load_tokenizer(tmp_path)
    assert again.special_tokens == ours.special_tokens and again.tokens == ours.tokens


def test_ranks_by_another_name(tmp_path):
    (tmp_path / "mine.tiktoken").write_text("IQ== 0\n")
    with pytest.raises(TokenizerFileError, match=r"mine\.tiktoken: ranks do not say how text is cut.*cl100k_base"):
        load_tokenizer(tmp_path / "mine.tiktoken")
