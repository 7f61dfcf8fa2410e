"""Conversations: messages become token ids, and a mask that says which of them are trained.

A chat model is trained on the assistant's words only; what the user says is given. Tools that render a template to one
string and look for the assistant's part in it afterwards lose that part now and then, and train on the prompt or on
nothing, in silence. Here a conversation is a list of pieces, each with its own flag (chat_templates.py), and text and
mask are both made from that list, so they cannot disagree. In ChatML:

    piece                          trained?
    <|im_start|> user↵             no
    What is a fret?                no
    <|im_end|> ↵                   no
    <|im_start|> assistant↵        no        ← a prompt ends here: its ids are a prefix of the training example's
    A strip of metal.              yes
    <|im_end|>                     yes       ← so the model learns to stop
    ↵                              no

Marks (`Mark`) become the tokenizer's special tokens; everything a person wrote is ordinary text, so a user who types
`<|im_end|>` ends nothing. Contents are stripped of outer white space, and neighbouring pieces that are both trained or
both not are encoded in one: then every stretch begins where a pre-token begins, and the ids equal those of
`transformers`, which encodes the whole string at once (tests/core/data/test_conversations.py). One case is an
exception: a GPT-2-like tokenizer joins the two line breaks that end Llama 3's header unless a word follows them; then
`transformers` spells prompt and example differently, and here both are spelled as the prompt.

There is no default system message, unless the template is one that has it: what is not in the data is not in the ids.
A message with `"weight": 0` (OpenAI's spelling) is read and not trained.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.data.chat_templates import (
    CHATML_TEMPLATE,
    ROLES,
    Mark,
    Template,
    chat_template,
    pieces,
    prompt_pieces,
    special_id,
    stop_ids,
    template_of,
)
from luthier.core.errors import InputError, did_you_mean
from luthier.tokenizers.bpe import Tokenizer

__all__ = [
    "CHATML_TEMPLATE",
    "OWN_PAIRS",
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


@dataclass(frozen=True)
class Message:
    """What one side said. `role` is system, user or assistant; an assistant's words may be left untrained."""

    role: str
    content: str
    trained: bool = True


@dataclass(frozen=True)
class Conversation:
    """Messages in order. `where` names the file and line they were read from."""

    messages: tuple[Message, ...]
    where: str = ""


# ---------------------------------------------------------------- ids and mask


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Message], template: Template | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (int32) and which of them are trained (bool), both [tokens]: `trained[i]` means that the model learns to say
    `ids[i]` after what precedes it. The template is the tokenizer's unless another is given."""
    template = template or template_of(tokenizer)
    return _encode(tokenizer, pieces(messages, template), template)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], template: Template | None = None) -> np.ndarray:
    """Ids (int32) of a conversation up to where the assistant is to speak."""
    template = template or template_of(tokenizer)
    return _encode(tokenizer, prompt_pieces(messages, template), template)[0]


def _encode(
    tokenizer: Tokenizer, parts: Iterable[tuple[str, bool]], template: Template
) -> tuple[np.ndarray, np.ndarray]:
    """What stands between two special tokens is cut into tokens as a whole, as transformers cuts what it renders. Bytes
    are cut where an answer begins, too, so that a prompt is the beginning of its example; pieces cannot be, for each
    stretch would begin with a space: a token of theirs that begins before the answer is not of the answer."""
    by_bytes = isinstance(tokenizer, Tokenizer)
    ids, trained = [np.empty(0, np.int32)], [np.empty(0, bool)]
    known = ((special_id(tokenizer, piece, template), piece, train) for piece, train in parts)
    for (special, _), run in groupby(known, lambda part: (part[0] is not None, by_bytes and part[2])):
        numbers, texts, trains = zip(*run, strict=True)
        flags = np.repeat(trains, 1 if special else [len(text) for text in texts])
        if special:
            own = np.array(numbers, np.int32)
        elif flags.all() or not flags.any():
            own = tokenizer.encode_ordinary("".join(texts))
            flags = np.full(len(own), flags.any())
        else:
            own, places = tokenizer.offsets("".join(texts))
            flags = flags[[min(start, len(flags) - 1) for start, _ in places]]
        ids.append(own)
        trained.append(flags)
    return np.concatenate(ids), np.concatenate(trained)


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

OWN_PAIRS = 'write pairs into pairs.jsonl, and pairs = ["pairs.jsonl"] under [project] in luthier.toml.'


def read_conversations(path: Path) -> list[Conversation]:
    """Read a JSONL file (or .jsonl.gz, or one JSON list) of conversations. Each row may be in any of these forms:

        {"messages": [{"role": "user", "content": "…"}, …]}                   OpenAI
        {"conversations": [{"from": "human", "value": "…"}, …]}               ShareGPT
        {"instruction": "…", "input": "…", "output": "…"}                     Alpaca (input optional; or response)
        {"prompt": "…", "completion": "…"}                                    prompt and completion, texts or messages

    Tools are not read: a row in which one is called is an error. Raises InputError naming file, line and field of the
    first row that cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file\nGive a JSONL file of conversations.")
    found = [Conversation(_messages(row, where), where) for where, row in rows_of(path)]
    if not found:
        raise InputError(
            f"{path} holds no conversation: expected JSON lines with {' or '.join(FORMS)}, or pairs, "
            f'{{"question": "…", "answer": "…"}}\nIn a project: {OWN_PAIRS}'
        )
    return found


def rows_of(path: Path) -> list[tuple[str, Any]]:
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
    if {"chosen", "rejected"} <= row.keys() and not {"completion", "output"} & row.keys():
        raise InputError(f"{where}: fields 'chosen' and 'rejected' are a preference\nTune on it with --objective dpo.")
    form = next((form for form in FORMS if form in row), None)
    if form is None:
        raise InputError(
            f"{where}: no field {' or '.join(repr(f) for f in FORMS)} (found {', '.join(row) or 'nothing'})"
        )
    messages = FORMS[form](row, where)
    if not any(m.role == "assistant" and m.trained for m in messages):
        what = "weight 0 for all messages" if any(m.role == "assistant" for m in messages) else "no message"
        raise InputError(f"{where}: field '{form}': {what} of the assistant, so there is nothing to train on")
    return messages


def _openai(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    turns = _turns(row, "messages", where)
    return tuple(_message(turn, "role", "content", ROLE_NAMES, at) for at, turn in turns)


def _sharegpt(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    turns = _turns(row, "conversations", where)
    return tuple(_message(turn, "from", "value", SHAREGPT_NAMES, at) for at, turn in turns)


def _alpaca(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    asked = text_of(row, "instruction", where)
    if row.get("input"):
        asked += "\n\n" + text_of(row, "input", where)
    answer = "response" if "response" in row and "output" not in row else "output"
    return Message("user", asked), Message("assistant", text_of(row, answer, where))


def _completion(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    return *given(side(row, "prompt", "user", where)), *side(row, "completion", "assistant", where)


def given(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The same messages, of which nothing is trained."""
    return tuple(replace(m, trained=False) if m.role == "assistant" else m for m in messages)


def side(row: Mapping[str, Any], field: str, role: str, where: str) -> tuple[Message, ...]:
    """A field that holds a text, said by `role`, or a list of OpenAI's messages."""
    if isinstance(row.get(field), list):
        return tuple(_message(turn, "role", "content", ROLE_NAMES, at) for at, turn in _turns(row, field, where))
    return (Message(role, text_of(row, field, where)),)


FORMS = {"messages": _openai, "conversations": _sharegpt, "instruction": _alpaca, "prompt": _completion}
ROLE_NAMES = {role: role for role in ROLES} | {"developer": "system"}
TOOLS = ("tool_calls", "function_call")
SHAREGPT_NAMES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", **ROLE_NAMES}


def _turns(row: Mapping[str, Any], field: str, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The list under `field` with the address of each entry, counted from 0 as a program would."""
    turns = row[field]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{where}: field '{field}': expected a list of messages with at least one entry")
    return [(f"{where}: {field}[{i}]", turn) for i, turn in enumerate(turns)]


def _message(turn: Mapping[str, Any], role: str, content: str, roles: Mapping[str, str], where: str) -> Message:
    name = turn.get(role)
    called = [key for key in TOOLS if turn.get(key)] + ["a tool's answer"] * (name in ("tool", "function"))
    if called:
        raise InputError(f"{where}: {called[0]}: tool calls are not read, texts only\nLeave such conversations out.")
    if not isinstance(name, str) or name not in roles:
        near = did_you_mean(name, roles) if isinstance(name, str) else ""
        raise InputError(f"{where}: field '{role}' is {name!r}{near or '.'} Expected {', '.join(roles)}")
    weight = turn.get("weight", 1)
    if weight not in (0, 1):
        raise InputError(f"{where}: field 'weight' is {weight!r}: expected 0 (not trained) or 1")
    return Message(roles[name], text_of(turn, content, where), trained=bool(weight))


def text_of(row: Mapping[str, Any], field: str, where: str) -> str:
    """A text that is not empty; OpenAI's list of parts is joined if all of them are text."""
    value = row.get(field)
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if not isinstance(value, str) or not value.strip():
        missing = f"is missing (the row has {', '.join(row)})"
        found = missing if field not in row else "is empty" if isinstance(value, str) else "is no text"
        raise InputError(f"{where}: field '{field}' {found}: expected text")
    return value.strip()
