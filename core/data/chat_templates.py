"""Chat templates: how a conversation is written down for a model, piece by piece.

A template is a list of pieces for each role. From that one list come the ids, the mask of what is trained, the prompt,
and the Jinja text that other programs render; so they cannot disagree.

    chatml     <|im_start|>user↵What is a fret?<|im_end|>↵<|im_start|>assistant↵A strip of metal.<|im_end|>↵
    qwen       the same; where no system message is given, one comes first: "You are a helpful assistant."
    llama3     <|begin_of_text|><|start_header_id|>user<|end_header_id|>↵↵What is a fret?<|eot_id|>…
    alpaca     Below is an instruction …↵↵### Instruction:↵What is a fret?↵↵### Response:↵A strip of metal.⏹

In an assistant's turn everything from its words to the mark that ends the turn is trained, the mark included, so that
the model learns to stop. Marks (`Mark`) become special tokens; what a person wrote never does.

Which template a tokenizer has, its chat template says (tokenizer_config.json), if it is one of these; otherwise its
tokens do: those of Llama 3, or else ChatML. A tokenizer without ChatML's tokens (a foreign base model) gets
`<|im_start|>` as ordinary text and its own end of text in place of `<|im_end|>`; the others need theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from luthier.core.errors import ConfigError

if TYPE_CHECKING:
    from luthier.tokenizers.bpe import Tokenizer

__all__ = [
    "CHATML_TEMPLATE",
    "TEMPLATES",
    "Mark",
    "Template",
    "chat_template",
    "check_template",
    "pieces",
    "prompt_pieces",
    "stop_ids",
    "template_of",
]

ROLES = ("system", "user", "assistant")


class Mark(str):
    """A piece of the template itself, as opposed to what a person wrote: becomes a special token."""

    __slots__ = ()


class Said(Protocol):
    """What pieces are made of: one side's words (`Message` in conversations.py)."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def trained(self) -> bool: ...


START, END = Mark("<|im_start|>"), Mark("<|im_end|>")
END_OF_TEXT = Mark("⏹")  # whatever the tokenizer calls it
ROLE, CONTENT = "{role}", "{content}"


@dataclass(frozen=True)
class Template:
    """`turns` has a role's pieces, or everybody's under "*"; `stop` is the mark that ends an assistant's turn."""

    name: str
    turns: dict[str, tuple[str, ...]]
    stop: Mark
    begin: tuple[str, ...] = ()
    system: str = ""
    """The system message where none is given; empty: none."""

    def turn(self, role: str) -> tuple[str, ...]:
        """The pieces of one role's turn, with CONTENT where its words go."""
        parts = self.turns.get(role) or self.turns["*"]
        return tuple(p if isinstance(p, Mark) else p.replace(ROLE, role) for p in parts)

    def marks(self) -> set[Mark]:
        """The special tokens it needs."""
        return {p for parts in (self.begin, *self.turns.values()) for p in parts if isinstance(p, Mark)} - {END_OF_TEXT}


CHATML = Template("chatml", {"*": (START, f"{ROLE}\n", CONTENT, END, "\n")}, END)
QWEN = Template("qwen", CHATML.turns, END, system="You are a helpful assistant.")
_HEADER = (Mark("<|start_header_id|>"), ROLE, Mark("<|end_header_id|>"), "\n\n")
_TURN_END = Mark("<|eot_id|>")
LLAMA3 = Template("llama3", {"*": (*_HEADER, CONTENT, _TURN_END)}, _TURN_END, begin=(Mark("<|begin_of_text|>"),))
ALPACA = Template(
    "alpaca",
    {
        "system": (CONTENT, "\n\n"),
        "user": ("### Instruction:\n", CONTENT, "\n\n"),
        "assistant": ("### Response:\n", CONTENT, END_OF_TEXT, "\n\n"),
    },
    END_OF_TEXT,
    system="Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)
TEMPLATES = {template.name: template for template in (CHATML, QWEN, LLAMA3, ALPACA)}


# ---------------------------------------------------------------- pieces


def pieces(messages: Sequence[Said], template: Template = CHATML) -> list[tuple[str, bool]]:
    """The conversation as (text, trained) pieces; joined, the texts are what the Jinja template renders."""
    out: list[tuple[str, bool]] = [(text, False) for text in _opening(messages, template)]
    for message in messages:
        train = False
        for part in template.turn(message.role):
            train = train or (part == CONTENT and message.role == "assistant" and message.trained)
            out.append((message.content.strip() if part == CONTENT else part, train))
            train = train and part != template.stop
    return out


def prompt_pieces(messages: Sequence[Said], template: Template = CHATML) -> list[tuple[str, bool]]:
    """The same up to where the assistant is to speak."""
    return [*pieces(messages, template), *((text, False) for text in _assistant_begins(template))]


def _opening(messages: Sequence[Said], template: Template) -> Iterator[str]:
    """What stands before the first message."""
    yield from template.begin
    if template.system and not (messages and messages[0].role == "system"):
        yield from (template.system if part == CONTENT else part for part in template.turn("system"))


def _assistant_begins(template: Template) -> tuple[str, ...]:
    turn = template.turn("assistant")
    return turn[: turn.index(CONTENT)]


# ---------------------------------------------------------------- a tokenizer's template


def mark_id(tokenizer: Tokenizer, mark: str) -> int | None:
    """A mark's own id, if the tokenizer has one; some vocabularies do not call such tokens special."""
    return {**tokenizer.added_tokens, **tokenizer.special_tokens}.get(mark)


def special_id(tokenizer: Tokenizer, piece: str, template: Template) -> int | None:
    """The special token that a piece becomes: a mark's own, or for the end of a turn the tokenizer's end of text; None
    for text, and for a mark that is written out because the tokenizer has none."""
    if not isinstance(piece, Mark):
        return None
    number = mark_id(tokenizer, piece)
    return tokenizer.eos_id if number is None and piece == template.stop else number


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer: the end of a turn, and the end of a text."""
    end = mark_id(tokenizer, template_of(tokenizer).stop)
    return tuple(dict.fromkeys([tokenizer.eos_id if end is None else end, tokenizer.eos_id]))


def template_of(tokenizer: Tokenizer) -> Template:
    """The template that a tokenizer's conversations are written in: see the lecture."""
    if tokenizer.chat_template is not None:
        for template in TEMPLATES.values():
            if tokenizer.chat_template == chat_template(tokenizer, template):
                return template
    return LLAMA3 if all(mark_id(tokenizer, mark) is not None for mark in LLAMA3.marks()) else CHATML


def check_template(tokenizer: Tokenizer, template: Template) -> None:
    """ConfigError if the tokenizer lacks the template's special tokens; ChatML does without."""
    missing = sorted(mark for mark in template.marks() if mark_id(tokenizer, mark) is None)
    if missing and template is not CHATML:
        raise ConfigError(
            f"template = '{template.name}': the tokenizer has no {', '.join(missing)}\n"
            "Choose chatml or alpaca, which any tokenizer can write, or take the tokenizer of such a model."
        )


# ---------------------------------------------------------------- Jinja


def chat_template(tokenizer: Tokenizer, template: Template | None = None) -> str:
    """The Jinja template that gives the same ids with this tokenizer (transformers and others render it)."""
    template = template or template_of(tokenizer)
    names = {number: name for name, number in {**tokenizer.added_tokens, **tokenizer.special_tokens}.items()}
    stop = template.stop if mark_id(tokenizer, template.stop) is not None else names.get(tokenizer.eos_id, "")
    return _jinja(template.name, stop)


@lru_cache(maxsize=64)
def _jinja(name: str, stop: str) -> str:
    """The Jinja text of a template whose turns end with `stop`."""
    template = TEMPLATES[name]

    def literal(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

    def terms(parts: Sequence[str]) -> str:
        """Pieces as a sum of literals, of the role and of the content."""
        out = []
        for part in parts:
            if part == CONTENT:
                out.append("(message['content'] | trim)")
            elif part == template.stop:
                out.append(literal(stop))
            else:
                before, role, after = part.partition(ROLE)
                out += (
                    [literal(before)] * bool(before) + ["message['role']"] * bool(role) + [literal(after)] * bool(after)
                )
        return " + ".join(out)

    def default(text: str) -> str:
        return "{% if loop.first and message['role'] != 'system' %}{{ " + literal(text) + " }}{% endif %}"

    if "*" in template.turns:
        turn = "{{ " + terms(template.turns["*"]) + " }}"
    else:
        tests = [
            f"{{% if message['role'] == '{r}' %}}{{{{ {terms(p)} }}}}{{% endif %}}" for r, p in template.turns.items()
        ]
        turn = "".join(tests)
    system = "".join(
        template.system if p == CONTENT else stop if p == template.stop else p for p in template.turn("system")
    )
    return (
        ("{{ " + literal("".join(template.begin)) + " }}" if template.begin else "")
        + "{% for message in messages %}"
        + (default(system) if template.system else "")
        + turn
        + "{% endfor %}{% if add_generation_prompt %}{{ "
        + literal("".join(_assistant_begins(template)))
        + " }}{% endif %}"
    )


CHATML_TEMPLATE = _jinja("chatml", END)
