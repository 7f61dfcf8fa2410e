"""What pretraining and fine-tuning do alike around the loop: before it, and after it.

before    the machine's threads; the model to go on from, its vocabulary grown if need be; run.json, from which
          `luthier replay` and `luthier verify` rebuild the run
after     the model in Hugging Face's layout with its tokenizer
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import read_json, write_json
from luthier.core.console import counted, say
from luthier.core.errors import ConfigError, InputError
from luthier.core.training.loop_config import UNSEEN

if TYPE_CHECKING:
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe import Tokenizer

__all__ = [
    "RUN",
    "check_context",
    "open_base",
    "sampler",
    "save",
    "settings",
    "threads_said",
    "write_choices",
    "write_run",
]

RUN = "run.json"
SAMPLE = 80  # tokens


def open_base(folder: Path, tokenizer: Path | None) -> Transformer:
    """The model to go on from, with a row for every id of `tokenizer`, which must be the model's own or extend it."""
    from luthier.models.adapter_files import open_model
    from luthier.models.lora import merge_adapters
    from luthier.models.resize import extends, resize_vocabulary
    from luthier.tokenizers.formats import load_tokenizer

    model, old = merge_adapters(open_model(folder)), load_tokenizer(folder)
    if old.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {old.vocab_size:,} tokens, its model only {model.config.vocab_size:,}\n"
            "Put the model's own tokenizer there; another one is taken with --tokenizer, if it extends that."
        )
    new = old if tokenizer is None or tokenizer == folder else load_tokenizer(tokenizer)
    if new.tokens == old.tokens:
        return model
    if not extends(new, old):
        raise InputError(
            f"{tokenizer} gives ids another meaning than the tokenizer of {folder}\n"
            f"Make one that only adds to it: luthier train-tokenizer CORPUS --extend {folder} --out tokenizer"
        )
    count = resize_vocabulary(model, old, new)
    say(f"  vocabulary   {old.vocab_size:,} ids and {count:,} new ones, each from the mean of the pieces it replaces")
    return model


def check_context(config: Any, shape: ModelConfig, folder: Path, other: str) -> None:
    """ConfigError for rows longer than the model of `folder` can read; `other` is what else helps."""
    if config.context > shape.context:
        raise ConfigError(
            f"context = {config.context:,}: {folder} reads {shape.context:,} tokens\n"
            f"Give --context {shape.context}, {other}"
        )


def settings(config: Any) -> dict[str, Any]:
    """What identifies the work: all settings but those that change nothing in the result."""
    best = {"keep"} if getattr(config, "keep", "") == "best" else set()
    named = {name: value for name, value in asdict(config).items() if name not in UNSEEN - best}
    if "learning_rate" in named:
        named["learning_rate"] = named["learning_rate"] or 0.0  # as left out was always stored
    if not named.get("mup_base_width"):
        named.pop("mup_base_width", None)  # a run without it is the work that it was before there was µP
    return named


def write_run(folder: Path, stage: str, config: Any, given: dict[str, Any]) -> None:
    """run.json: what `luthier replay` and `luthier verify` start from: settings, threads, where the inputs lie; and the
    name by which others know the run, which it keeps when it is gone on with."""
    import torch

    from luthier.core.training.execution import use_machine

    before = read_json(folder / RUN) if (folder / RUN).is_file() else {}
    use_machine(config.threads or before.get("threads", 0))
    processes = max(before.get("processes", 1), int(os.environ.get("WORLD_SIZE", "1")))
    kept = {"threads": before.get("threads", torch.get_num_threads()), "id": before.get("id", uuid.uuid4().hex[:8])}
    paths = {name: _absolute(value) for name, value in given.items()}
    about = {"stage": stage, "config": asdict(config), **kept, "processes": processes, "given": paths}
    write_json(folder / RUN, about)


def write_choices(folder: Path, made: dict[str, Any]) -> None:
    """How the run computes since its last start, into run.json, where there is one: checkpoints may be deleted."""
    if (folder / RUN).is_file():
        write_json(folder / RUN, {**read_json(folder / RUN), "choices": made})


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_absolute(one) for one in value]
    return str(value.resolve()) if isinstance(value, Path) else value


def sampler(model: Any, tokenizer: Any, beginning: str) -> Callable[[], str] | None:
    """A function that writes on from `beginning`; None where nothing is to be written or nothing can be.

    It reads the whole text for every token and, being greedy, takes as many steps in every process, which a model whose
    weights are shared out needs (parallel.py). models/generate.py is faster and gives the same tokens up to the model's
    context; of a longer text this reads the end."""
    if not beginning or tokenizer is None:
        return None
    import torch

    @torch.no_grad()
    def write() -> str:
        made = list(tokenizer.encode(beginning))
        start, context, device = len(made), model.config.context, model.embed_tokens.weight.device
        for _ in range(SAMPLE):
            logits_V = model(torch.tensor([made[-context:]], device=device))[0, -1, : tokenizer.vocab_size]
            token = int(logits_V.argmax())
            if token == tokenizer.eos_id:
                break
            made.append(token)
        return beginning + tokenizer.decode(made[start:])

    return write


def threads_said() -> str:
    """How many threads train, in words."""
    import torch

    return counted(torch.get_num_threads(), "thread")


def save(model: Any, folder: Path | None, tokenizer: Path | Tokenizer | None, base: Path | None = None) -> None:
    """The model in Hugging Face's layout, with its tokenizer; what config.json says of single tokens as in `base`.
    No folder: another process writes."""
    if folder is None:
        return
    model = model.to("cpu")
    from luthier.core.data.conversations import chat_template, stop_ids
    from luthier.models.checkpoints import save_model
    from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

    if tokenizer is None:
        save_model(model, folder)
        say("  tokenizer    none given: the model's folder has none, and text cannot be put to it")
        return
    known = load_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
    known.chat_template = known.chat_template or chat_template(known)
    like = base or (tokenizer if isinstance(tokenizer, Path) else None)
    save_tokenizer(known, folder)
    save_model(model, folder, eos_token_id=stop_ids(known), **_tokens_of(like))


def _tokens_of(base: Path | None) -> dict[str, Any]:
    """The tokens that a base model's config.json names beside its end: how a text begins, what fills a row."""
    config = read_json(base / "config.json") if base and (base / "config.json").is_file() else {}
    return {name: config.get(name) for name in ("bos_token_id", "pad_token_id")}
