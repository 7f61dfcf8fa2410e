"""`luthier new --base`: a run tunes a folder that `transformers` wrote, and what comes out opens there again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.artifacts import read_json
from luthier.core.assistant.chat import chat
from luthier.core.assistant.opening import open_assistant
from luthier.core.data.conversations import Message, encode_prompt
from luthier.core.errors import InputError
from luthier.core.project import load_project, new_project, run_project
from luthier.core.show.show import show
from luthier.models.checkpoints import CheckpointError, load_model
from luthier.tokenizers.formats import TokenizerFileError, load_tokenizer
from luthier.tokenizers.pretokenize import PATTERNS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GUIDE = """# Care of instruments

A luthier keeps the workshop at forty-five per cent humidity, in summer as in winter.

## Glossary

**Purfling**: a thin inlaid line around the edge that keeps cracks from running into the top.

**Saddle**: the strip of bone on which the strings rest at the bridge.

**Kerfing**: the strip of sawn wood that joins the top to the sides.
"""
FAQ = """# Questions

## Do you repair bows?

Yes, bows are rehaired and straightened in the workshop on Tuesdays.

## What does a new set of strings cost?

A set of strings for a guitar costs 24 euros, put on and tuned.
"""
NEWS = "# This week\n\nThis week the shop is open from Wednesday to Friday between 10:00 and 17:00.\n"
NOTES = "# Wood\n\nSpruce from the mountains is split, not sawn, and dries for eight years before it becomes a top.\n"
SETTINGS = """
[finetune]
epochs = 1
learning_rate = 0.01

[vectors]
vector_size = 16
epochs = 1

[evaluate]
questions_per_set = 3
resamples = 50

[assistant]
max_new_tokens = 8
"""
PROBES = ("What is a fret? It's 1,250 °C, Äpfel 🎻\n\n  x", "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>")
FAMILIES = {
    # Marks of the beginning, no ChatML: the shape of Llama 3.
    "Llama": (("<|endoftext|>", "<|begin|>"), "<|endoftext|>", "llama3"),
    # ChatML's tokens, normalised text: the shape of Qwen 2.
    "Qwen2": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "qwen2"),
}


def make_base(folder: Path, family: str) -> Path:
    """A random model of two layers with a tokenizer of its own, both written by Hugging Face's libraries."""
    import transformers

    special, end, pattern = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([GUIDE, FAQ, NEWS, NOTES], trainer)
    names: dict[str, str] = {"eos_token": end}
    if family == "Qwen2":
        tokenizer.normalizer = normalizers.NFC()
    else:
        names["bos_token"] = "<|begin|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(
        **sizes,
        num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size() + 8,  # padded, as large models' are
        max_position_embeddings=256,
        eos_token_id=tokenizer.token_to_id(end),
        bos_token_id=tokenizer.token_to_id("<|begin|>"),
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project on such a base, run once."""
    root = tmp_path_factory.mktemp(request.param)
    folder = new_project(root / "shop", base=make_base(root / "base", request.param))
    settings = folder / "luthier.toml"
    text = settings.read_text().replace("volatile = []", 'volatile = ["news*"]')
    text = text.replace("validation_fraction = 0.1", 'validation = ["notes.md"]\nvalidation_fraction = 0.0')
    settings.write_text(text.replace("\n[finetune]\n", SETTINGS))
    for name, content in {"guide": GUIDE, "faq": FAQ, "news": NEWS, "notes": NOTES}.items():
        (folder / "documents" / f"{name}.md").write_text(content)
    run_project(folder)
    return folder


def test_nothing_is_pretrained_and_the_rest_is_there(project: Path) -> None:
    made = {p.name for p in (project / "build").iterdir() if not p.name.startswith(".")}
    assert made == {"corpus", "shards", "vectors-word2vec", "tuned", "index", "evaluation"}
    before = {p: p.stat().st_mtime_ns for p in (project / "build").glob("*/manifest.json")}
    assert "pretrain" not in run_project(project).seconds
    assert {p: p.stat().st_mtime_ns for p in (project / "build").glob("*/manifest.json")} == before


def test_before_is_the_base_and_after_the_tuned_model(project: Path) -> None:
    results = read_json(project / "build" / "evaluation" / "results.json")
    bits = results["bits_per_byte"]
    assert bits["tuned"]["value"] < bits["before"]["value"]
    assert {row["system"] for row in results["table"]} == {"before", "tuned", "retrieved", "both"}
    base, tuned = load_project(project).built("model"), project / "build" / "tuned"
    assert not torch.equal(load_model(base).embed_tokens.weight, load_model(tuned).embed_tokens.weight)


def test_the_tuned_folder_opens_in_transformers(project: Path) -> None:
    import transformers

    base, tuned = load_project(project).built("model"), project / "build" / "tuned"
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tuned)
    first: Any = transformers.AutoTokenizer.from_pretrained(base)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tuned).eval()
    own, model = load_tokenizer(tuned), load_model(tuned)
    for text in PROBES:
        assert tokenizer(text)["input_ids"] == first(text)["input_ids"]
        ids = own.encode(text, "all").tolist()
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        with torch.inference_mode():
            ids_BT = torch.tensor([ids])
            torch.testing.assert_close(model(ids_BT), theirs(ids_BT).logits, rtol=1e-4, atol=1e-4)
    asked = [{"role": "user", "content": "What is a saddle?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert prompt == encode_prompt(own, [Message("user", "What is a saddle?")]).tolist()
    assert theirs.config.bos_token_id == read_json(base / "config.json").get("bos_token_id")
    assert own.eos_id in theirs.generation_config.eos_token_id


def test_the_assistant_answers_from_the_documents(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    chat(open_assistant(project), None, ["When is the shop open this week?", "What is a saddle?"], out)
    answers = out.getvalue()
    assert "Wednesday" in answers
    assert "news.md" in answers
    assert "bone" in answers
    for mode in ("tuned", "both"):
        chat(open_assistant(project), mode, ["Who was the first luthier?"], out)
    for path in (project, load_project(project).built("model"), project / "build" / "tuned"):
        show(path)
    show(project / "build" / "tuned", text="A saddle is a strip of bone.")
    assert "2 layers of width 64" in capsys.readouterr().out


def test_a_base_that_cannot_be_tuned_is_refused_at_once(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(InputError, match=r"base is not a model folder: it has no config\.json"):
        new_project(tmp_path / "p", base=base)
    (base / "config.json").write_text(json.dumps({"architectures": ["BloomForCausalLM"]}))
    with pytest.raises(CheckpointError, match="BloomForCausalLM is not supported"):
        new_project(tmp_path / "p", base=base)
    make_base(base, "Llama")
    (base / "tokenizer.json").unlink()
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json does not exist"):
        new_project(tmp_path / "p", base=base)
    assert not (tmp_path / "p").exists()
