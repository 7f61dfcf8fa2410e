"""Fine-tuning: what is trained and what never is, batches as functions of the step, and answers word for word."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.data.conversations import encode_prompt, stop_ids
from luthier.core.data.encode import encode
from luthier.core.data.questions import wording
from luthier.core.data.shards import write_shards
from luthier.core.errors import ConfigError, InputError, TrainingError
from luthier.core.training.batches import IGNORED, chance
from luthier.core.training.examples import Wording, encode_wording, read_wordings, vary
from luthier.core.training.finetune import FinetuneConfig, _rate, finetune
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.core.training.tuning_batches import batches
from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import preset
from luthier.models.generate import generate
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

ROWS = [
    {
        "question": "What wood is the top?",
        "answer": "The top is spruce.",
        "phrasings": ["Which wood is used for the top?"],
        "held_out": ["The top is made of what?"],
        "facts": ["spruce"],
        "language": "en",
    },
    {"question": "How long do strings last?", "answer": "About three months.", "phrasings": ["When do strings wear?"]},
    {"question": "What does a set-up cost?", "answer": "It costs 80 euros.", "phrasings": ["The TOP is made of what"]},
    {"question": "When are you open?", "answer": "This week until six.", "kind": "volatile"},
    {"question": "Who founded the shop?", "answer": "Ida Holm did.", "split": "validation"},
]


def row_of(w: Wording) -> dict[str, Any]:
    assert w.row is not None
    return w.row


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model with a tokenizer of its own, and the shards it was pretrained on."""
    folder = tmp_path_factory.mktemp("base")
    text = " ".join(f"{r['question']} {r['answer']}" for r in ROWS)
    tokenizer = train_bpe([text] * 4, 320)
    save_tokenizer(tokenizer, folder / "tokenizer")
    ids = [tokenizer.encode_ordinary(text) for _ in range(3)]
    shards = write_shards(folder / "shards", ids, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    tiny: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = PretrainConfig(
        **tiny, num_key_value_heads=1, context=32, batch_size=4, steps=10, threads=1, validation_tokens=0
    )
    pretrain(shards, folder / "model", config, tokenizer=folder / "tokenizer")
    return folder


def test_only_stable_training_pairs_and_no_held_out_wording(tmp_path):
    found = read_wordings([write_rows(tmp_path / "q.jsonl", ROWS)])
    asked = [row_of(w)["question"] for w in found.wordings]
    assert asked == [
        "What wood is the top?",
        "Which wood is used for the top?",
        "How long do strings last?",
        "When do strings wear?",
        "What does a set-up cost?",
    ]
    assert [row_of(w)["question"] for w in found.held_out] == ["The top is made of what?"]
    assert found.pairs == 3 and sum(found.left_out.values()) == 3
    assert row_of(found.wordings[0])["facts"] == ["spruce"] and row_of(found.wordings[0])["language"] == "en"


def test_conversations_join_the_pairs(tmp_path):
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    more = [*chat, {"role": "user", "content": "Open?"}, {"role": "assistant", "content": "Yes."}]
    talks = write_rows(tmp_path / "c.jsonl", [{"messages": chat}, {"messages": more}])
    found = read_wordings([write_rows(tmp_path / "q.jsonl", ROWS), talks])
    assert found.pairs == 5 and len(found.wordings) == 7
    assert [w.row is None for w in found.wordings[:2]] == [False, True]


def test_labels_are_the_answer_and_its_end(base):
    tokenizer = load_tokenizer(base / "model")
    found = read_wordings([write_rows(base / "q.jsonl", ROWS)])
    for w in found.wordings:
        example = encode_wording(tokenizer, w.messages, w.source)
        trained = example.labels[example.labels != IGNORED]
        assert tokenizer.decode(trained) == row_of(w)["answer"] + "<|im_end|>"
        prompt = encode_prompt(tokenizer, w.messages[:1])
        assert example.ids[: len(prompt)].tolist() == prompt.tolist()
        assert (example.labels[len(prompt) - 1 :] != IGNORED).all() and example.labels[-1] in stop_ids(tokenizer)


def test_variations_are_chosen_by_address_and_lose_few_words():
    question = "How long do the strings of a violin last?"
    shown = [vary(question, chance(0, 1, i), share=1.0, drop=0.2) for i in range(200)]
    assert shown == [vary(question, chance(0, 1, i), share=1.0, drop=0.2) for i in range(200)]
    assert len(set(shown)) > 20 and min(len(s.split()) for s in shown) >= 3
    assert all(set(wording(s).split()) <= set(wording(question).split()) for s in shown)
    assert {vary(question, chance(0, 1, i), share=0.0, drop=0.2) for i in range(20)} == {question}
    assert all(len(vary("What is it?", chance(2, i), share=1.0, drop=0.9).split()) == 3 for i in range(20))


def test_each_epoch_shows_every_wording_once_and_steps_are_pure(base):
    tokenizer = load_tokenizer(base / "model")
    found = read_wordings([write_rows(base / "q.jsonl", ROWS)])
    config = FinetuneConfig(batch_size=2, context=64, vary_drop=0.3, vary_share=0.9, replay_share=0.5)
    batch_at, again = (batches(config, found, tokenizer, 64, base / "shards") for _ in range(2))
    for epoch in range(3):
        sources = [s for step in range(3 * epoch, 3 * epoch + 3) for s in batch_at(step).sources]
        pairs = sorted(s for s in sources if isinstance(s, str))
        assert pairs == sorted(w.source for w in found.wordings)
    for step in (7, 0, 3):
        assert (batch_at(step).ids_BT == again(step).ids_BT).all()
    counts = np.array(
        [(b.trained, sum(len(s) for s in b.sources if isinstance(s, tuple))) for b in map(batch_at, range(60))]
    )
    answers = sum(int((encode_wording(tokenizer, w.messages, "").labels >= 0).sum()) for w in found.wordings) * 20
    assert abs(1 - answers / counts[:, 0].sum() - 0.5) < 0.05


def test_a_tiny_model_answers_word_for_word(base, tmp_path, capsys):
    rows = write_rows(tmp_path / "q.jsonl", ROWS)
    config = FinetuneConfig(epochs=60, batch_size=4, context=64, learning_rate=1e-2, threads=1)
    done = finetune(base / "model", [rows], tmp_path / "tuned", config, replay=base / "shards")
    told = capsys.readouterr().err
    assert "⟦The top is spruce.<|im_end|>⟧" in told and "volatile pairs" in told and "tokens trained" in told
    assert "held out     10 tokens, measured every 30 steps" in told
    assert done.pairs == 3 and done.examples == 5 and done.held_out_loss is not None
    tokenizer, model = load_tokenizer(tmp_path / "tuned"), load_model(tmp_path / "tuned")
    trained = [json.loads(line) for line in (tmp_path / "tuned" / "trained_pairs.jsonl").read_text().splitlines()]
    from luthier.core.data.conversations import Message

    prompts = [encode_prompt(tokenizer, [Message("user", row["question"])]) for row in trained]
    made = generate(model, prompts, max_new_tokens=24, stop_ids=stop_ids(tokenizer))
    said = [tokenizer.decode([i for i in g.ids if i not in stop_ids(tokenizer)]) for g in made]
    assert said == [row["answer"] for row in trained]
    stops = json.loads((tmp_path / "tuned" / "generation_config.json").read_text())["eos_token_id"]
    assert set(stops if isinstance(stops, list) else [stops]) == set(stop_ids(tokenizer))
    assert not finetune(base / "model", [rows], tmp_path / "tuned", config, replay=base / "shards").changed


def test_it_refuses_without_pairs_and_says_why(base, tmp_path):
    rows = write_rows(tmp_path / "q.jsonl", ROWS[3:])
    with pytest.raises(TrainingError, match=r"nothing to train on(.|\n)*1 volatile(.|\n)*1 pairs of the validation"):
        finetune(base / "model", [rows], tmp_path / "tuned")
    (tmp_path / "questions.jsonl").write_text("")  # of a project whose documents give no pair
    with pytest.raises(TrainingError, match=r"nothing to train on(.|\n)*pairs = \[\"pairs.jsonl\"\] under \[project\]"):
        finetune(base / "model", [tmp_path / "questions.jsonl"], tmp_path / "tuned")
    with pytest.raises(TrainingError, match=r"no example fits into 8 tokens"):
        finetune(base / "model", [write_rows(tmp_path / "q.jsonl", ROWS)], tmp_path / "t", FinetuneConfig(context=8))
    long = [{**ROWS[1], "held_out": ["How long, " + "very long, " * 40 + "do strings last?"]}]
    with pytest.raises(TrainingError, match=r"none of the 1 wordings held out fits into 64 tokens"):
        finetune(base / "model", [write_rows(tmp_path / "q.jsonl", long)], tmp_path / "t", FinetuneConfig(context=64))
    with pytest.raises(ConfigError, match=r"keep = 'best' goes by .* wordings held out, and there are none"):
        finetune(
            base / "model", [write_rows(tmp_path / "q.jsonl", ROWS[1:])], tmp_path / "t", FinetuneConfig(keep="best")
        )
    with pytest.raises(InputError, match=r"no config.json"):
        finetune(tmp_path, [rows], tmp_path / "tuned")
    with pytest.raises(InputError, match=r"another tokenizer"):
        other = write_shards(tmp_path / "other", [np.arange(20)], vocab_size=99, eos_id=0)
        finetune(base / "model", [write_rows(tmp_path / "q.jsonl", ROWS)], tmp_path / "u", replay=other)
    words = "an entirely different set of words makes as many other tokens; it needs some more for being as large "
    save_tokenizer(train_bpe([words * 9], load_tokenizer(base / "model").vocab_size), tmp_path / "as large")
    (tmp_path / "words.txt").write_text(words * 40)
    for tokenizer, shards in ((tmp_path / "as large", tmp_path / "theirs"), (base / "tokenizer", tmp_path / "ours")):
        encode([tmp_path / "words.txt"], tokenizer, shards)
    rows, config = write_rows(tmp_path / "rows.jsonl", ROWS), FinetuneConfig(epochs=1, batch_size=4, context=64)
    with pytest.raises(InputError, match=r"theirs was encoded with another tokenizer \(as large as the model's"):
        finetune(base / "model", [rows], tmp_path / "u", config, replay=tmp_path / "theirs")
    assert finetune(base / "model", [rows], tmp_path / "u", config, replay=tmp_path / "ours", overwrite=True).changed


def test_a_foreign_folder_without_chat_tokens_is_tuned_too(tmp_path, capsys):
    """As a base model from elsewhere: only an end-of-text token, an embedding padded beyond the tokenizer's size."""
    text = " ".join(f"{r['question']} {r['answer']}" for r in ROWS)
    tokenizer = train_bpe([text] * 4, 300, special_tokens=("<|endoftext|>",))
    save_tokenizer(tokenizer, tmp_path / "base")
    shape = preset("demo", vocab_size=320, hidden_size=36, intermediate_size=48, num_hidden_layers=1)
    save_model(Transformer(shape), tmp_path / "base")
    rows = write_rows(tmp_path / "q.jsonl", ROWS)
    done = finetune(tmp_path / "base", [rows], tmp_path / "tuned", FinetuneConfig(epochs=2, batch_size=4, threads=1))
    assert done.steps == 4 and "<|im_start|>assistant" in capsys.readouterr().err
    tuned = load_tokenizer(tmp_path / "tuned")
    assert stop_ids(tuned) == (tuned.eos_id,) and tuned.chat_template is not None
    assert "<|im_end|>" not in tuned.chat_template
    save_model(Transformer(replace(shape, vocab_size=290)), tmp_path / "base")
    with pytest.raises(InputError, match="its tokenizer has 300 tokens, its model only 290"):
        finetune(tmp_path / "base", [rows], tmp_path / "other")


def test_the_rate_follows_the_width_but_not_below_96():
    def rate(width, **more):
        return _rate(FinetuneConfig(**more), width)

    assert rate(192) == 1.2e-2 and rate(2048) == pytest.approx(1.05e-4, rel=0.01)
    assert rate(96) == rate(32) == 4.8e-2
    assert rate(4096, lora_rank=8) == pytest.approx(2.34e-4, rel=0.01)
    assert rate(192, objective="dpo") == pytest.approx(1.2e-3)
    assert rate(32, learning_rate=0.3) == 0.3
