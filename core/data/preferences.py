"""Preferences: the same prompt with two answers, of which one is the better.

Rows of JSON, in any of these forms; a side is a text or a list of messages:

    {"prompt": "…", "chosen": "…", "rejected": "…"}
    {"prompt": [messages], "chosen": [messages], "rejected": [messages]}
    {"chosen": [messages], "rejected": [messages]}                             what both begin with is the prompt
    {"instruction": "…", "input": "…", "chosen": "…", "rejected": "…"}         Alpaca
    {"input": {"messages": […]}, "preferred_output": [messages], "non_preferred_output": [messages]}     OpenAI
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.data.conversations import Message, given, rows_of, side, text_of
from luthier.core.errors import InputError

__all__ = ["Preference", "read_preferences"]


@dataclass(frozen=True)
class Preference:
    """A prompt and the two ways it goes on. `where` names the file and line it was read from."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    where: str = ""

    def conversation(self, chosen: bool) -> tuple[Message, ...]:
        """The whole conversation with one of the answers, of which only the answer counts."""
        return *given(self.prompt), *(self.chosen if chosen else self.rejected)


def read_preferences(path: Path) -> list[Preference]:
    """Every row of a JSONL file (or .jsonl.gz, or one JSON list). InputError names file, line and field of the first
    row that cannot be used."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file\nGive a JSONL file of preferences: prompt, chosen, rejected.")
    found = [_preference(row, where) for where, row in rows_of(path)]
    if not found:
        raise InputError(
            f'{path} holds no preference: expected JSON lines, {{"prompt": "…", "chosen": "…", "rejected": "…"}}'
        )
    return found


def _preference(row: Any, where: str) -> Preference:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected one JSON object, found {type(row).__name__}")
    better, worse = (
        ("preferred_output", "non_preferred_output") if "preferred_output" in row else ("chosen", "rejected")
    )
    if better not in row or worse not in row:
        missing = better if better not in row else worse
        raise InputError(f"{where}: field '{missing}' is missing: expected prompt, chosen and rejected")
    chosen, rejected = (side(row, field, "assistant", where) for field in (better, worse))
    prompt = _prompt(row, where)
    if prompt is None:
        prompt, chosen, rejected = _without_beginning(chosen, rejected)
    if not prompt:
        raise InputError(f"{where}: no prompt: '{better}' and '{worse}' begin with different messages")
    for field, answer in ((better, chosen), (worse, rejected)):
        if not answer or answer[-1].role != "assistant":
            raise InputError(f"{where}: field '{field}': expected to end with a message of the assistant")
    return Preference(prompt, chosen, rejected, where)


def _prompt(row: Mapping[str, Any], where: str) -> tuple[Message, ...] | None:
    """What precedes the answers; None where it is in them."""
    if "prompt" in row:
        return side(row, "prompt", "user", where)
    if "instruction" in row:
        asked = text_of(row, "instruction", where)
        return (Message("user", f"{asked}\n\n{text_of(row, 'input', where)}" if row.get("input") else asked),)
    if isinstance(row.get("input"), dict):
        return side(row["input"], "messages", "user", f"{where}: input")
    return None


def _without_beginning(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """The messages that both share from the start, and the rest of each; the last of each is always the answer."""
    most = min(len(chosen), len(rejected)) - 1
    same = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    return chosen[:same], chosen[same:], rejected[same:]
