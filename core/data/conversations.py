"""Conversations: messages become token ids, and a mask that says which of them are trained.

A chat model is trained on the assistant's words only; what the user says is given. Tools that render a template to one
string and look for the assistant's part in it afterwards lose that part now and then, and train on the prompt or on
nothing, in silence. Here a conversation is a list of pieces, each with its own flag, and text and mask are both made
from that list, so they cannot disagree. The format is ChatML:

    piece                          trained?
    <|im_start|> user↵             no
    What is a fret?                no
    <|im_end|> ↵                   no
    <|im_start|> assistant↵        no        ← a prompt ends here: its ids are a prefix of the training example's
    A strip of metal.              yes
    <|im_end|>                     yes       ← so the model learns to stop
    ↵                              no

Each piece is encoded by itself. Marks (`Mark`) become the tokenizer's special tokens; everything a person wrote is
ordinary text, so a user who types `<|im_end|>` ends nothing. Contents are stripped of outer white space: then every
piece begins where a pre-token begins, and the ids equal those of `transformers` with CHATML_TEMPLATE, which encodes the
whole string at once (tests/core/data/test_conversations.py). A tokenizer without these special tokens (a foreign base
model) gets `<|im_start|>` as ordinary text and its own end-of-text token in place of `<|im_end|>`.

There is no default system message: what is not in the data is not in the ids.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from luthier.tokenizers.bpe import Tokenizer

__all__ = [
    "CHATML_TEMPLATE",
    "Conversation",
    "Mark",
    "Message",
    "chat_template",
    "check_example",
    "encode_conversation",
    "encode_prompt",
    "pieces",
    "read_conversations",
    "stop_ids",
]

ROLES = ("system", "user", "assistant")


class Mark(str):
    """A piece of the template itself, as opposed to what a person wrote: becomes a special token."""

    __slots__ = ()


START, END = Mark("<|im_start|>"), Mark("<|im_end|>")

# The same format for programs that render Jinja (transformers, vLLM, llama.cpp); goes into tokenizer_config.json.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] | trim) + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Message:
    """What one side said. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages in order. `where` names the file and line they were read from."""

    messages: tuple[Message, ...]
    where: str = ""


# ---------------------------------------------------------------- the template


def pieces(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """The conversation as (text, trained) pieces; joined, the texts are what CHATML_TEMPLATE renders."""
    out: list[tuple[str, bool]] = []
    for message in messages:
        trained = message.role == "assistant"
        out += [(START, False), (f"{message.role}\n", False)]
        out += [(message.content.strip(), trained), (END, trained), ("\n", False)]
    return out


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Ids (int32) and which of them are trained (bool), both [tokens]: `trained[i]` means that the model learns to say
    `ids[i]` after what precedes it."""
    return _encode(tokenizer, pieces(messages))


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> np.ndarray:
    """Ids (int32) of a conversation up to where the assistant is to speak."""
    return _encode(tokenizer, [*pieces(messages), (START, False), ("assistant\n", False)])[0]


def _encode(tokenizer: Tokenizer, parts: Iterable[tuple[str, bool]]) -> tuple[np.ndarray, np.ndarray]:
    ids = [np.empty(0, np.int32)]
    trained = [np.empty(0, bool)]
    for text, train in parts:
        piece = _mark(tokenizer, text) if isinstance(text, Mark) else tokenizer.encode_ordinary(text)
        ids.append(np.asarray(piece, np.int32))
        trained.append(np.full(len(piece), train))
    return np.concatenate(ids), np.concatenate(trained)


def _mark(tokenizer: Tokenizer, mark: str) -> Sequence[int] | np.ndarray:
    """A mark's special token; where the tokenizer has none, its end of text for the end, plain text for the start."""
    number = _id(tokenizer, mark)
    if number is not None:
        return [number]
    return [tokenizer.eos_id] if mark == END else tokenizer.encode_ordinary(str(mark))


def _id(tokenizer: Tokenizer, mark: str) -> int | None:
    """A mark's own id, if the tokenizer has one; some vocabularies do not call such tokens special."""
    return {**tokenizer.added_tokens, **tokenizer.special_tokens}.get(mark)


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer: the end of a turn, and the end of a text."""
    end = _id(tokenizer, END)
    return tuple(dict.fromkeys([tokenizer.eos_id if end is None else end, tokenizer.eos_id]))


def chat_template(tokenizer: Tokenizer) -> str:
    """The Jinja template that gives the same ids with this tokenizer."""
    if _id(tokenizer, END) is not None:
        return CHATML_TEMPLATE
    names = {number: name for name, number in tokenizer.special_tokens.items()}
    return CHATML_TEMPLATE.replace(END, names[tokenizer.eos_id])


def check_example(tokenizer: Tokenizer, ids: np.ndarray, trained: np.ndarray, where: str = "example") -> None:
    """Refuse what would be trained on in vain: nothing trained at all, or an answer that never ends (cut off)."""
    if len(ids) != len(trained):
        raise InputError(f"{where}: {len(ids)} ids and {len(trained)} marks of what is trained; expected as many")
    if not trained.any():
        raise InputError(f"{where}: no token is trained; expected an assistant message")
    last = int(ids[np.flatnonzero(trained)[-1]])
    if last not in stop_ids(tokenizer):
        raise InputError(
            f"{where}: the last trained token is {last}, no stop token {stop_ids(tokenizer)}: the answer was cut off\n"
            "Raise the longest length of an example, or shorten the answer."
        )


# ---------------------------------------------------------------- reading


def read_conversations(path: Path) -> list[Conversation]:
    """Read a JSONL file (or .jsonl.gz, or one JSON list) of conversations. Each row may be in any of these forms:

        {"messages": [{"role": "user", "content": "…"}, …]}                   OpenAI
        {"conversations": [{"from": "human", "value": "…"}, …]}               ShareGPT
        {"instruction": "…", "input": "…", "output": "…"}                     Alpaca (input optional; or response)
        {"prompt": "…", "completion": "…"}                                    prompt and completion

    Raises InputError naming file, line and field of the first row that cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file\nGive a JSONL file of conversations.")
    found = [Conversation(_messages(row, where), where) for where, row in _rows(path)]
    if not found:
        raise InputError(f"{path} holds no conversation")
    return found


def _rows(path: Path) -> list[tuple[str, Any]]:
    """Every row with its address."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start:,}; save it as UTF-8") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path}: damaged gzip file: {error}") from error
    if text.lstrip().startswith("["):
        rows = _json(text, str(path))
        return [(f"{path}: row {number}", row) for number, row in enumerate(rows, 1)]
    lines = [(f"{path}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(where, _json(line, where)) for where, line in lines]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON at column {error.colno}: {error.msg}") from error


def _messages(row: Any, where: str) -> tuple[Message, ...]:
    """A row of any known form as messages."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected one JSON object, found {type(row).__name__}")
    form = next((form for form in FORMS if form in row), None)
    if form is None:
        raise InputError(
            f"{where}: no field {' or '.join(repr(f) for f in FORMS)} (found {', '.join(row) or 'nothing'})"
        )
    messages = FORMS[form](row, where)
    if all(m.role != "assistant" for m in messages):
        raise InputError(f"{where}: field '{form}': no message of the assistant, so there is nothing to train on")
    return messages


def _openai(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    turns = _turns(row, "messages", where)
    return tuple(_message(turn, "role", "content", ROLE_NAMES, at) for at, turn in turns)


def _sharegpt(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    turns = _turns(row, "conversations", where)
    return tuple(_message(turn, "from", "value", SHAREGPT_NAMES, at) for at, turn in turns)


def _alpaca(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    asked = _text(row, "instruction", where)
    if row.get("input"):
        asked += "\n\n" + _text(row, "input", where)
    answer = "response" if "response" in row and "output" not in row else "output"
    return Message("user", asked), Message("assistant", _text(row, answer, where))


def _completion(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    return Message("user", _text(row, "prompt", where)), Message("assistant", _text(row, "completion", where))


FORMS = {"messages": _openai, "conversations": _sharegpt, "instruction": _alpaca, "prompt": _completion}
ROLE_NAMES = {role: role for role in ROLES}
SHAREGPT_NAMES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", **ROLE_NAMES}


def _turns(row: Mapping[str, Any], field: str, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The list under `field` with the address of each entry, counted from 0 as a program would."""
    turns = row[field]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{where}: field '{field}': expected a list of messages with at least one entry")
    return [(f"{where}: {field}[{i}]", turn) for i, turn in enumerate(turns)]


def _message(turn: Mapping[str, Any], role: str, content: str, roles: Mapping[str, str], where: str) -> Message:
    name = turn.get(role)
    if not isinstance(name, str) or name not in roles:
        near = did_you_mean(name, roles) if isinstance(name, str) else ""
        raise InputError(f"{where}: field '{role}' is {name!r}{near} Expected {', '.join(roles)}")
    return Message(roles[name], _text(turn, content, where))


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    """A text that is not empty; OpenAI's list of parts is joined if all of them are text."""
    value = row.get(field)
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str) or not value.strip():
        found = (
            "is missing" if field not in row else "is empty" if value == "" or isinstance(value, str) else "is no text"
        )
        raise InputError(f"{where}: field '{field}' {found}: expected text")
    return value.strip()
