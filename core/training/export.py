"""Export: a model for other programs, and the proof that it still says the same.

    a Hugging Face folder    config.json, model.safetensors, tokenizer.json …: transformers opens it
    model-f16.gguf           on request, for llama.cpp (models/gguf.py); q8_0: half the size

**The self-test.** Chat templates, tokens that end a turn, a head that should be tied: what goes wrong in an export
shows only in what the model says afterwards. So a few prompts are answered greedily three times, and the export fails,
and leaves nothing, unless the ids are the same in all:

    trainer    the weights as they were trained, in this process
    folder     the exported files, opened by transformers where it is installed, by this package otherwise
    server     the exported files behind `luthier serve`'s application, asked over its HTTP interface (its text)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.artifacts import Artifact, read_json, read_jsonl
from luthier.core.console import counted, say
from luthier.core.errors import ConfigError, InputError, TrainingError

if TYPE_CHECKING:
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["ExportConfig", "ExportSummary", "export"]

PROMPTS = ("Hello", "What is this?", "Wer sind Sie?", "Tell me more about it, please.", "2 + 2 =", "Warum?")


@dataclass(frozen=True)
class ExportConfig:
    """What is written, and how much of it is tried."""

    gguf: Literal["none", "f16", "q8_0"] = "none"
    """Also a file for llama.cpp: weights as float16, or in blocks of 32 signed bytes."""
    prompts: int = 6
    """Prompts of the self-test: questions the model was tuned on, or a few short ones."""
    max_new_tokens: int = 24
    """Tokens of each answer in the self-test."""

    def __post_init__(self) -> None:
        for name in ("prompts", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected 1 or more")


@dataclass
class ExportSummary:
    """What was written and how the self-test went."""

    out: Path
    prompts: int = 0
    opened_by: str = ""
    """What opened the exported folder: transformers and its version, or luthier."""
    files: list[str] = field(default_factory=list)
    changed: bool = True

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.out} is up to date"
        return (
            f"{', '.join(self.files)} in {self.out}\n"
            f"self-test: {counted(self.prompts, 'prompt')}, the same tokens in the trainer, in {self.opened_by} "
            "and in the server"
        )


def export(
    model: Path, out: Path, config: ExportConfig | None = None, *, prompts: Sequence[str] = (), overwrite: bool = False
) -> ExportSummary:
    """Write the model folder `model`, or a checkpoint that a run kept (`RUN/step-…`), as a Hugging Face folder `out`,
    with GGUF on request, and test it on `prompts`.

    Raises InputError if it is no model with a tokenizer, TrainingError if the self-test fails; nothing is left then.
    """
    from luthier.core.training.runs import save

    config, model = config or ExportConfig(), Path(model)
    if not model.is_dir():
        raise InputError(f"{model}: no such folder\nGive the --out of pretrain or finetune.")
    work = Artifact(out, "export", asdict(config), {"model": model}, overwrite=overwrite)
    if work.done:
        return ExportSummary(Path(out), changed=False)
    with work, _nothing_left(work.folder):
        trained, tokenizer, base = _opened(model)
        save(trained, work.folder, tokenizer, base)
        if config.gguf != "none":
            _gguf(trained, tokenizer, work.folder, config, model.name)
        asked = list(prompts) or _questions(model, config.prompts)
        opened_by = self_test(trained, tokenizer, work.folder, asked, config.max_new_tokens)
        files = [p.name for p in work.folder.iterdir() if p.suffix in (".gguf", ".safetensors")]
    return ExportSummary(work.out, len(asked), opened_by, sorted(files))


def _opened(folder: Path) -> tuple[Transformer, Tokenizer, Path | None]:
    """Model and tokenizer, adapters merged, and the folder whose config.json names its special tokens."""
    from luthier.core.training.checkpoint import STATE
    from luthier.core.training.runs import open_base
    from luthier.tokenizers.formats import load_tokenizer

    if (folder / STATE).is_file():
        return _of_checkpoint(folder)
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise InputError(
            f"{folder} has no tokenizer: nothing can be put to it\nGive the --out of pretrain or finetune."
        )
    return open_base(folder, None), load_tokenizer(folder), folder


def _of_checkpoint(place: Path) -> tuple[Transformer, Tokenizer, Path | None]:
    """The model as its run had it at that step, the run taken from the folder that the checkpoint lies in."""
    from luthier.core.training.checkpoint import load_checkpoint
    from luthier.core.training.replay import open_run
    from luthier.core.training.runs import RUN
    from luthier.models.lora import merge_adapters

    run = open_run(place.resolve().parent)
    if run.tokenizer is None:
        raise InputError(f"{place.parent} was trained without a tokenizer: nothing can be put to its model")
    model = run.arguments["model"]
    load_checkpoint(place, model, run.arguments["optimizers"])
    given = read_json(run.folder / RUN)["given"]
    base = given.get("base") or given.get("model")
    return merge_adapters(model), run.tokenizer, Path(base) if base else None


@contextlib.contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """A failed export is not gone on with: what it wrote is deleted."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _gguf(model: Transformer, tokenizer: Tokenizer, folder: Path, config: ExportConfig, name: str) -> None:
    from luthier.core.data.conversations import stop_ids
    from luthier.models.gguf import save_gguf

    kind = config.gguf
    assert kind != "none"
    ends = [i for i in stop_ids(tokenizer) if i != tokenizer.eos_id]
    save_gguf(model, tokenizer, folder / f"model-{kind}.gguf", kind, name=name, stop_id=ends[0] if ends else -1)


def _questions(model: Path, count: int) -> list[str]:
    """Questions that the model was tuned on, or short prompts."""
    rows = read_jsonl(model / "trained_pairs.jsonl") if (model / "trained_pairs.jsonl").is_file() else iter(())
    asked = dict.fromkeys(row["question"] for row in rows)
    return [*asked, *PROMPTS][:count]


# ---------------------------------------------------------------- the self-test


def self_test(model: Transformer, tokenizer: Tokenizer, folder: Path, prompts: Sequence[str], most: int) -> str:
    """Answer `prompts` greedily in three ways; returns what opened the folder. TrainingError if the ids differ."""
    from luthier.core.data.conversations import Message, encode_prompt, stop_ids
    from luthier.models.generate import generate

    ends = stop_ids(tokenizer)
    room = model.config.max_position_embeddings - most - 1
    asked = [encode_prompt(tokenizer, [Message("user", prompt)]).tolist() for prompt in prompts]
    asked = [ids for ids in asked if len(ids) <= room]
    if not asked:
        raise TrainingError(f"no prompt of the self-test fits into the model's context: shorten it to {room} tokens")
    model.eval()
    made = generate(model, asked, max_new_tokens=most, stop_ids=ends, vocab_size=tokenizer.vocab_size)
    trained = [g.ids for g in made]
    again, opened_by = _in_folder(folder, asked, ends, most, tokenizer)
    _compare(trained, again, prompts, tokenizer, opened_by)
    texts = _in_server(folder, list(prompts), most)
    said = [tokenizer.decode(ids).strip() for ids in trained]
    for prompt, here, there in zip(prompts, said, texts, strict=False):
        if here != there:
            raise TrainingError(
                f"the export says something else in the server: to {prompt!r}\n{here!r}, then {there!r}"
            )
    size = f"{counted(len(asked), 'prompt')}, {counted(sum(map(len, trained)), 'token')}"
    say(f"  self-test    {size}: the same in the trainer, {opened_by}, server")
    return opened_by


def _in_folder(
    folder: Path, asked: list[list[int]], ends: Sequence[int], most: int, tokenizer: Tokenizer
) -> tuple[list[list[int]], str]:
    """The ids that the exported folder gives, and what opened it."""
    try:
        import transformers
    except ImportError:
        from luthier.models.checkpoints import load_model
        from luthier.models.generate import generate

        model = load_model(folder)
        made = generate(model, asked, max_new_tokens=most, stop_ids=ends, vocab_size=tokenizer.vocab_size)
        return [g.ids for g in made], "luthier (transformers is not installed)"
    import torch

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.eval()
    found = []
    for ids in asked:
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=most,
                eos_token_id=list(ends) or None,
                pad_token_id=tokenizer.pad_id,
            )
        new = out[0, len(ids) :].tolist()
        found.append(new[: next((i for i, token in enumerate(new) if token in ends), len(new))])
    return found, f"transformers {transformers.__version__}"


def _compare(
    ours: list[list[int]], theirs: list[list[int]], prompts: Sequence[str], tokenizer: Tokenizer, who: str
) -> None:
    for prompt, a, b in zip(prompts, ours, theirs, strict=False):
        if a != b:
            place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            raise TrainingError(
                f"the export says something else in {who}: to {prompt!r}, from token {place + 1} on\n"
                f"{tokenizer.decode(a)!r}, then {tokenizer.decode(b)!r}"
            )


def _in_server(folder: Path, prompts: list[str], most: int) -> list[str]:
    """What the exported folder says behind the server's application."""
    from luthier.core.assistant.assistant import Assistant, AssistantConfig
    from luthier.core.assistant.opening import Opened
    from luthier.core.assistant.serve import application

    config = AssistantConfig(min_confidence=0, max_new_tokens=most)
    served = application(Opened(Assistant(folder, None, config), "export"))
    return [asyncio.run(_ask(served, prompt, most)) for prompt in prompts]


async def _ask(served: Any, prompt: str, most: int) -> str:
    """One chat completion, through the ASGI interface that a web server calls."""
    messages = [{"role": "user", "content": prompt}]
    request = {"model": "export:tuned", "messages": messages, "temperature": 0, "max_tokens": most}
    body, sent = json.dumps(request).encode(), []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("self-test", 0), "server": ("self-test", 0),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await served(scope, receive, send)
    answer = json.loads(b"".join(message.get("body", b"") for message in sent))
    if "error" in answer:
        raise TrainingError(f"the server refuses the self-test's prompt {prompt!r}: {answer['error']['message']}")
    return answer["choices"][0]["message"]["content"]
