"""`luthier export`: a model for other programs. The work is in `core/training/export.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from luthier.core.training.export import ExportConfig, export
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Write a model in the forms that other programs read, and test that it says the same in them.

    Goes in: a model folder with its tokenizer; adapters are merged into their base. Or a checkpoint that a run kept
    (--keep every): RUN/step-00000500.

    Comes out: a Hugging Face folder, and with --gguf a file for llama.cpp in it. A few prompts are answered greedily by
    the model, by the exported folder (opened by transformers where it is installed) and by the server; if one token
    differs the export fails, and leaves nothing.

    Example: luthier export build/tuned --gguf q8_0 --out exported

    Takes some seconds for a small model: the test loads it three times.
    """

    model: tyro.conf.Positional[Path]
    """Folder of the model, or of a run's checkpoint."""
    out: Path = Path("exported")
    """Folder for the export."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A prompt to test with, instead of --prompts; may be given several times."""
    overwrite: bool = False
    """Replace a different export in --out."""
    config: ExportConfig = field(default_factory=ExportConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "export", argv)
    print(export(command.model, command.out, command.config, prompts=command.prompt, overwrite=command.overwrite))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
