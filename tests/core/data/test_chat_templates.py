"""Chat templates: the published formats letter by letter, ids equal to those of `transformers` with the exported Jinja
text, and a prompt that is always the beginning of its example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.chat_templates import (
    CHATML_TEMPLATE,
    TEMPLATES,
    chat_template,
    check_template,
    pieces,
    prompt_pieces,
    stop_ids,
    template_of,
)
from luthier.core.data.conversations import Message, encode_conversation, encode_prompt, read_conversations
from luthier.core.errors import ConfigError, InputError
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tokenizer, save_tokenizer
from luthier.tokenizers.pretokenize import PATTERNS

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>")
MARKS += ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TALK = (
    Message("user", "What is a fret?"),
    Message("assistant", "A strip of metal."),
    Message("user", "  And a nut? (short, please!)\n"),
    Message("assistant", "\n'Tis where the string rests...\n\n1. bone\n2. brass;"),
)
TEXT = "### Instruction: ### Response: user assistant system " + " ".join(m.content for m in TALK)
# As the makers of the formats publish them (model cards of Llama 3, Qwen2 and Stanford Alpaca).
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHo<|im_end|>\n"
)
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|>"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nHi\n\n### Response:\nHo⏹\n\n"
)
# The prompt's last two line breaks are one token there, and two when an answer follows: see conversations.py.
JOINED = [("llama3", "gpt2"), ("llama3", "smollm")]
SHORT = (Message("user", "Hi"), Message("assistant", "Ho"))


def tokenizer_with(pattern: str = "cl100k") -> Tokenizer:
    return train_bpe([TEXT] * 3, 360, special_tokens=MARKS, pattern=pattern)


def test_the_published_formats() -> None:
    def written(name: str, messages: tuple[Message, ...] = SHORT) -> str:
        return "".join(text for text, _ in pieces(messages, TEMPLATES[name]))

    assert written("qwen") == QWEN and written("alpaca") == ALPACA
    assert written("llama3", (Message("system", "Be kind"), *SHORT)) == LLAMA3
    assert written("qwen", (Message("system", "Be kind"), *SHORT)).startswith("<|im_start|>system\nBe kind<|im_end|>")
    assert CHATML_TEMPLATE == (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + "
        "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_answers_and_the_marks_that_end_them_are_trained(name: str) -> None:
    template = TEMPLATES[name]
    expected = [text for m in TALK if m.role == "assistant" for text in (m.content.strip(), template.stop)]
    assert [text for text, trained in pieces(TALK, template) if trained] == expected
    untrained = (TALK[0], Message("assistant", TALK[1].content, trained=False), *TALK[2:])
    assert [text for text, trained in pieces(untrained, template) if trained] == expected[2:]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_ids_equal_transformers(name: str, pattern: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = tokenizer_with(pattern)
    ours.chat_template = chat_template(ours, TEMPLATES[name])
    save_tokenizer(ours, tmp_path)
    assert template_of(load_tokenizer(tmp_path)).name == name
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    for talk in (TALK, SHORT, (Message("system", "Answer in one line."), *TALK)):
        rows = [{"role": m.role, "content": m.content} for m in talk]
        ids, trained = encode_conversation(ours, talk)
        rendered = theirs.apply_chat_template(rows, tokenize=False)
        prompt = encode_prompt(ours, talk[:-1]).tolist()
        assert ours.decode(ids) == rendered and prompt == ids[: len(prompt)].tolist()
        if (name, pattern) not in JOINED:
            assert theirs.apply_chat_template(rows, tokenize=True, return_dict=False) == ids.tolist()
            made = theirs.apply_chat_template(rows[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
            assert made == prompt
        assert trained[len(prompt)] and int(ids[np.flatnonzero(trained)[-1]]) == stop_ids(ours)[0]


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4), st.sampled_from(sorted(TEMPLATES)))
def test_jinja_renders_the_pieces(contents: list[str], name: str) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    tokenizer, template = tokenizer_with_all(), TEMPLATES[name]
    talk = [Message(("user", "assistant", "system")[i % 3], c) for i, c in enumerate(contents)]
    rows = [{"role": m.role, "content": m.content} for m in talk]
    for prompt in (False, True):
        parts = prompt_pieces(talk, template) if prompt else pieces(talk, template)
        expected = "".join("<|endoftext|>" if text == "⏹" else text for text, _ in parts)
        made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        text = made.from_string(chat_template(tokenizer, template)).render(messages=rows, add_generation_prompt=prompt)
        assert text == expected.replace("⏹", "<|endoftext|>") or "⏹" in "".join(contents)


_ALL: list[Tokenizer] = []


def tokenizer_with_all() -> Tokenizer:
    if not _ALL:
        _ALL.append(tokenizer_with())
    return _ALL[0]


def test_a_tokenizers_own_template() -> None:
    plain = train_bpe([TEXT], 300, special_tokens=("<|endoftext|>",))
    assert template_of(plain).name == "chatml" and stop_ids(plain) == (plain.eos_id,)
    llama = train_bpe([TEXT], 300, special_tokens=("<|endoftext|>", *MARKS[3:]))
    llama.chat_template = "{{ 'a template of their own' }}"
    assert template_of(llama).name == "llama3"
    assert stop_ids(llama) == (llama.special_tokens["<|eot_id|>"], llama.eos_id)
    check_template(plain, TEMPLATES["alpaca"])
    check_template(plain, TEMPLATES["chatml"])
    with pytest.raises(ConfigError, match=r"llama3': the tokenizer has no <\|begin_of_text\|>(.|\n)*chatml or alpaca"):
        check_template(plain, TEMPLATES["llama3"])


def test_weights_of_messages_and_prompts_of_several_turns(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    turns = [{"role": m.role, "content": m.content} for m in TALK]

    def read(row: dict[str, Any]) -> tuple[Message, ...]:
        file.write_text(json.dumps(row) + "\n")
        return read_conversations(file)[0].messages

    assert [m.trained for m in read({"messages": [{**turns[0]}, {**turns[1], "weight": 0}, *turns[2:]]})] == [
        1,
        0,
        1,
        1,
    ]
    assert [m.trained for m in read({"prompt": turns[:3], "completion": turns[3:]})] == [1, 0, 1, 1]
    assert read({"messages": [{"role": "developer", "content": "x"}, *turns]})[0].role == "system"
    with pytest.raises(InputError, match=r"c.jsonl:1: field 'messages': weight 0 for all messages of the assistant"):
        read({"messages": [turns[0], {**turns[1], "weight": 0}]})
    with pytest.raises(InputError, match=r"c.jsonl:1: messages\[1\]: field 'weight' is 2"):
        read({"messages": [turns[0], {**turns[1], "weight": 2}]})
