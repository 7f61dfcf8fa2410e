"""Out of memory: which setting to lower.

A batch is cut into pieces (`micro_batch`) without changing the result, and `recompute` changes nothing but the time, so
these come first; what makes another model comes last. Memory runs out in many words: PyTorch's allocators, NumPy's and
the operating system's.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from luthier.core.errors import TrainingError

__all__ = ["is_out_of_memory", "memory_told"]

# How PyTorch says it where it has no class of its own for it: on the CPU, in C++, in safetensors, for a new thread.
WORDS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",
    # oneDNN has no words for memory: a product that ran before and now cannot be made or begun has none for its code
    "could not create a primitive",
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the machine's or a card's."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return not isinstance(error, TrainingError) and any(word in str(error) for word in WORDS)


@contextlib.contextmanager
def memory_told(config: Any) -> Iterator[None]:
    """Turn "out of memory" into a TrainingError that names the settings to lower; `config` is a stage's."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(f"out of memory: {said}\n{_advice(config)}") from error


def _advice(config: Any) -> str:
    """The settings that lower what a run holds, from what costs nothing to what makes another model."""
    tuned = hasattr(config, "lora_rank")
    # A tuning batch is examples, packed into fewer rows: how many is known where they are packed.
    rows = config.micro_batch or (0 if tuned else config.batch_size)
    same = [f"--micro-batch {rows // 2} (rows at once, now {rows})"] if rows > 1 else []
    same += ["--micro-batch 1 (rows at once, now all of a batch)"] if not rows else []
    same += [] if config.recompute else ["--recompute"]
    other = [f"--context {config.context // 2} (now {config.context})"] if config.context > 32 else []
    other += ["--precision bf16"] if config.precision == "fp32" else []
    whole = config.parallel != "fsdp"  # which takes neither NF4 nor states of one byte
    if whole and config.precision != "bf16-pure" and config.optimizer != "adamw-8bit":
        other += ["--optimizer adamw-8bit"]
    if tuned:
        other += [] if config.lora_rank else ["--lora-rank 8"]
        other += ["--quantize nf4"] if config.lora_rank and config.quantize == "none" and whole else []
    else:
        other += ["a smaller --model"]
    first = f"The same result with less: {', '.join(same)}. " if same else ""
    return f"{first}Another one: {', '.join(other)}."
