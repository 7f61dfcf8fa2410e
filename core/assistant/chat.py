"""The assistant in the terminal: questions in, answers with their source out.

On a terminal it is a conversation with colours; from a pipe it reads one question a line and prints one answer a line,
so that `luthier chat PROJECT < questions.txt` works in a script.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from luthier.core.assistant.assistant import MODES, Answer
from luthier.core.assistant.opening import Opened
from luthier.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["chat", "origin"]

HELP = """\
/mode tuned|retrieved|both   who answers: the model, the index, or the index first and then the model
/why QUESTION                the five best passages of the index with their scores
/new                         forget the conversation
/help                        this text
/quit                        leave (so does Ctrl-D)"""


def chat(
    opened: Opened, mode: str | None = None, lines: Iterable[str] | None = None, out: TextIO | None = None
) -> None:
    """Answer `lines` (stdin when left out) until they end or one of them is /quit. Raises what a model or an index that
    cannot be opened raises before it asks for anything."""
    from rich.console import Console

    opened.assistant.warm_up()
    console = Console(file=out, highlight=False)
    talking = lines is None and sys.stdin.isatty() and console.is_terminal
    session = Session(opened, mode or opened.assistant.default_mode, console)
    if talking:
        console.print(f"{opened.name}: ask a question; /help lists commands, /quit leaves.", style="bold", markup=False)
    for line in _typed(console) if talking else (lines if lines is not None else sys.stdin):
        if not session.take(line.strip()):
            return


def _typed(console: Console) -> Iterator[str]:
    """Lines typed at the prompt; Ctrl-C drops the line, Ctrl-D ends."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its history and line editing)
    while True:
        try:
            yield console.input("\n[bold green]you[/] ")
        except KeyboardInterrupt:
            console.print()
        except EOFError:
            console.print()
            return


class Session:
    """One conversation: its messages and who answers."""

    def __init__(self, opened: Opened, mode: str, console: Console) -> None:
        self.opened, self.mode, self.console = opened, mode, console
        self.messages: list[dict[str, str]] = []

    def take(self, line: str) -> bool:
        """Handle one line; False ends the session."""
        if line in ("/quit", "/exit"):
            return False
        if line.startswith("/"):
            self._command(line)
        elif line:
            self._answer(line)
        return True

    def _command(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/mode":
            self._set_mode(rest.strip())
        elif command == "/why":
            self._why(rest.strip())
        elif command == "/new":
            self.messages.clear()
            self._print("A new conversation.", "dim")
        else:
            self._print(HELP if command == "/help" else f"no command {command}\n{HELP}")

    def _set_mode(self, mode: str) -> None:
        try:
            self.mode = self.opened.assistant.checked_mode(mode)
            self._print(f"mode {mode}", "dim")
        except InputError as error:
            self._print(f"{error}\nModes: {', '.join(MODES)}", "red")

    def _why(self, question: str) -> None:
        hits = self.opened.assistant.search(question)
        for hit in hits:
            c = hit.chunk
            self._print(f"{hit.score:.2f}  {c.path}{f', page {c.page}' if c.page else ''}: {c.text}")
        if not hits:
            self._print("nothing found", "dim")

    def _answer(self, question: str) -> None:
        self.messages.append({"role": "user", "content": question})
        answer: Answer | None = None
        for piece in self.opened.assistant.stream(self.messages, self.mode):
            if isinstance(piece, Answer):
                answer = piece
            else:
                self.console.print(piece, end="", markup=False, soft_wrap=True)
        assert answer is not None
        self.messages.append({"role": "assistant", "content": answer.text})
        self._print("")
        self._print(f"  {origin(answer)}", "dim")

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)


def origin(answer: Answer) -> str:
    """One line on where an answer comes from."""
    if answer.path == "retrieval":
        return f"quoted from {answer.source}, score {answer.score:.2f}"
    if answer.path == "model":
        return f"from the model's memory, confidence {answer.score:.2f}"
    return "neither the index nor the model is sure enough"
