"""`luthier serve`: the assistant over HTTP. The work is in `core/assistant/serve.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from luthier.core.assistant.opening import open_assistant
from luthier.core.assistant.serve import serve
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Serve the assistant: OpenAI's chat completions at /v1, and a chat page at /.

    Goes in: a project folder, or a model folder with --index, or an index alone.

    Comes out: a server that any OpenAI client can talk to, streaming or not, until Ctrl-C. Whoever reaches the address
    may ask: there are no accounts, so the default host is this machine only.

    Example: luthier serve luthier-demo --port 8000

    Takes 3 s to start and about 0.2 s an answer with a model of 3 million parameters on 2 cores.
    """

    path: tyro.conf.Positional[Path]
    """Project, model or index folder."""
    index: Path | None = None
    """Index to look facts up in; a project has its own."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network of this machine."""
    port: int = 8000
    """Port to listen on; 0 chooses a free one."""


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "serve", argv)
    serve(open_assistant(command.path, command.index), command.host, command.port)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
