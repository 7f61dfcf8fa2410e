"""Whole training runs beside the others': time to a quality, tokens a second, memory.

    quality     seconds from the command to a validation loss of 1.88 nats a character on tiny Shakespeare (--text; the
                last tenth is held out), each tool as it is shipped: examples/shakespeare here, the command that
                nanoGPT's README gives for a CPU there (--peer nanogpt=FOLDER, a checkout). Ours is its whole run, from
                text to saved model. The loss is each tool's own figure, nanoGPT's an estimate from 20 random batches;
                the row has beside it the loss of both models, as saved, over all of the held-out text, in windows of
                64, untimed. Equal: ours reaches the loss, and over all of the text it is no worse than the other;
                where the other does not reach it in its whole schedule, its seconds are that schedule's, and the row
                says so
    loop        tokens/s of pretraining: `fit` and transformers' Trainer, the same weights, windows and batch size
    tuning      real (not padding) tokens/s of fine-tuning on conversations of 20 to 200 tokens: `fit` with packing,
                TRL's SFTTrainer with padding and with packing, 8 conversations' worth of tokens a step

Every run has a process of its own, in which memory that is freed stays with it (core/training/allocator.py), theirs
too; imports and the making of the model are not counted in loop and tuning, all else is. Equal there: before the first
step the loss over all examples is the same to 1e-4. The most memory that the process held is a row of its own.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luthier.core.benchmarks.timing import Row, in_child, most_memory, rows_of
from luthier.core.console import say
from luthier.core.errors import ConfigError, did_you_mean

__all__ = ["GROUPS", "run"]

GROUPS = ("quality", "loop", "tuning")
TARGET = 1.88  # nats a character: what nanoGPT's README reports for its setting on a CPU
NANO = [
    *("config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=100"),
    *("--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000"),
    *("--lr_decay_iters=2000", "--dropout=0.0"),
]
WINDOW = 64  # characters that either model reads at once
SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8}
SHAPE |= {"num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 512}
ROWS, CONTEXT, STEPS, TALKS = 8, 256, 16, 192  # long enough that what comes before the first step weighs little


def run(
    *,
    text: Path | None = None,
    only: Sequence[str] = (),
    peer: Sequence[str] = (),
    repeats: int = 3,
    seconds: float = 1800.0,
) -> list[Row]:
    """All rows; `only` names groups, `seconds` is the most that a run of `quality` may take. Raises ConfigError for a
    name or a peer that is none."""
    for name in only:
        if name not in GROUPS:
            raise ConfigError(
                f"--only {name}: no such group{did_you_mean(name, GROUPS)}; there are {', '.join(GROUPS)}"
            )
    paths = {one.partition("=")[0]: one.partition("=")[2] for one in peer}
    if paths.keys() - {"nanogpt"} or not all((Path(path) / "train.py").is_file() for path in paths.values()):
        raise ConfigError(f"--peer {' '.join(peer)}: expected nanogpt=FOLDER, a checkout with its train.py")
    groups, rows = only or GROUPS, []
    if "quality" in groups and text is None:
        say("quality is left out: --text tinyshakespeare.txt")
    elif "quality" in groups and text is not None:
        rows += _quality(text, paths.get("nanogpt"), repeats, seconds)
    for group, measure in (("loop", LOOPS), ("tuning", TUNERS)):
        if group in groups:
            rows += _race(group, measure, repeats)
    return rows


# ---------------------------------------------------------------- time to a quality


class Reached(NamedTuple):
    """What a run came to: `loss` by the tool's own figure, `whole` of the saved model over all of the held-out text."""

    seconds: float
    loss: float
    whole: float = math.inf


def _quality(text: Path, nanogpt: str | None, repeats: int, most: float) -> list[Row]:
    tools: dict[str, Callable[[], Reached]] = {"ours": lambda: _recipe(text, most)}
    if nanogpt:
        tools["nanoGPT"] = lambda: _nanogpt(Path(nanogpt), text, most)
    found: dict[str, list[Reached]] = {name: [] for name in tools}
    for _ in range(repeats):
        for name, tool in tools.items():
            run = tool()
            found[name].append(run)
            say(f"  {name}: {run.seconds:.1f} s, loss {run.loss:.3f}, over all of the held-out text {run.whole:.3f}")
    losses = {name: max(run.loss for run in runs) for name, runs in found.items()}
    whole = {name: statistics.median(run.whole for run in runs) for name, runs in found.items()}
    said = {
        name: f"{name} {losses[name]:.3f}, whole text {whole[name]:.3f}" + ("" if loss <= TARGET else ", not reached")
        for name, loss in losses.items()
    }
    return rows_of(
        f"tiny Shakespeare to {TARGET} ({'; '.join(said.values())})",
        "s",
        {name: [run.seconds for run in runs] for name, runs in found.items()},
        dict.fromkeys(losses, losses["ours"] <= TARGET and whole["ours"] <= min(whole.values())),
        group="quality",
        check=f"ours ends at {TARGET} or below and no worse than the other over all of the held-out text; a peer that "
        "does not reach it is given its whole run: the ratio is then a bound",
    )


def _recipe(text: Path, most: float) -> Reached:
    """Seconds of examples/shakespeare from its command to its end, and the validation loss; infinite if cut off."""
    recipe = Path(__file__).resolve().parents[2] / "examples" / "shakespeare" / "train.py"
    command = [sys.executable, recipe, text.resolve(), "build"]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr, timeout=most)
        except subprocess.TimeoutExpired:
            return Reached(time.perf_counter() - started, math.inf)
        seconds, model = time.perf_counter() - started, Path(folder) / "build/model"
        rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
        loss = [row["validation_loss"] for row in rows if "validation_loss" in row][-1]
        return Reached(seconds, loss, in_child(_whole_of_ours, model, text))


def _nanogpt(folder: Path, text: Path, most: float) -> Reached:
    """Seconds until nanoGPT's log shows the target, or of the whole run, and the validation loss then. A run that is
    cut off after `most` seconds has the loss it had reached."""
    data = folder / "data" / "shakespeare_char"
    if not (data / "train.bin").is_file():
        (data / "input.txt").write_bytes(text.read_bytes())
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, stdout=sys.stderr)
    started, loss, reached = time.perf_counter(), math.inf, 0.0
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-u", "train.py", *NANO, f"--out_dir={out}"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            end = threading.Timer(most, process.terminate)
            end.start()
            try:
                for line in process.stdout or ():
                    if shown := re.search(r"val loss (\d+\.\d+)", line):
                        loss, seconds = float(shown.group(1)), time.perf_counter() - started
                        reached = seconds if loss <= TARGET else 0.0
                        say(f"    nanoGPT after {seconds:.1f} s: {line.strip()}")
                    elif reached and line.startswith("iter"):  # the model of that loss is saved by now
                        break
            finally:
                end.cancel()
                process.terminate()
        seconds, saved = reached or time.perf_counter() - started, Path(out) / "ckpt.pt"
        return Reached(seconds, loss, in_child(_whole_of_nanogpt, folder, saved) if saved.is_file() else math.inf)


def _windows_of(ids: Any) -> tuple[Any, Any]:
    """Inputs and labels of a text in windows that do not overlap."""
    count = (len(ids) - 1) // WINDOW * WINDOW
    return ids[:count].view(-1, WINDOW), ids[1 : count + 1].view(-1, WINDOW)


def _mean_loss(logits_of: Callable[[Any], Any], ids: Any) -> float:
    import torch

    total, (inputs, labels) = 0.0, _windows_of(ids)
    with torch.no_grad():
        for x, y in zip(inputs.split(64), labels.split(64), strict=True):
            total += float(torch.nn.functional.cross_entropy(logits_of(x).flatten(0, 1), y.flatten(), reduction="sum"))
    return total / labels.numel()


def _whole_of_ours(folder: Path, text: Path) -> float:
    """Loss of our saved model over the last tenth of the text."""
    import torch

    from luthier.models.checkpoints import load_model
    from luthier.tokenizers.formats import load_tokenizer

    data = text.read_bytes()
    ids = np.asarray(load_tokenizer(folder).encode_ordinary(data[int(0.9 * len(data)) :].decode()), np.int64)
    return _mean_loss(load_model(folder).eval(), torch.from_numpy(ids))


def _whole_of_nanogpt(folder: Path, saved: Path) -> float:
    """Loss of nanoGPT's last saved model, in its own code, over its held-out text."""
    import torch

    sys.path.insert(0, str(folder))
    theirs = importlib.import_module("model")
    state = torch.load(saved, map_location="cpu")
    model = theirs.GPT(theirs.GPTConfig(**state["model_args"]))
    model.load_state_dict(state["model"])
    ids = np.fromfile(folder / "data/shakespeare_char/val.bin", np.uint16).astype(np.int64)
    return _mean_loss(lambda x: model.eval()(x, x)[0], torch.from_numpy(ids))  # without targets: the last logits only


# ---------------------------------------------------------------- tokens a second


def _race(group: str, tools: dict[str, Callable[..., Any]], repeats: int) -> list[Row]:
    """Each tool `repeats` times in turn, in processes of their own; tokens/s and memory."""
    able = {name: tool for name, tool in tools.items() if name == "ours" or all(map(find_spec, NEEDS[name]))}
    found: dict[str, list[tuple[float, int, float]]] = {name: [] for name in able}
    with tempfile.TemporaryDirectory() as folder:
        in_child(_make_model, Path(folder))
        for _ in range(repeats):
            for name, tool in able.items():
                quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
                found[name].append(in_child(_measured, tool, Path(folder), environment=quiet))
                say(f"  {name}: {found[name][-1][0]:,.0f} tokens/s")
    first = found["ours"][0][2]
    equal = {name: all(abs(loss - first) <= 1e-4 * first for _, _, loss in runs) for name, runs in found.items()}
    case = f"{group}: 5 M parameters, vocabulary 4,096"
    check = "before the first step the loss is the same to 1e-4"
    speed = {name: [speed for speed, _, _ in runs] for name, runs in found.items()}
    most = {name: [memory / 1e6 for _, memory, _ in runs] for name, runs in found.items()}
    return [
        *rows_of(case, "tokens/s", speed, equal, group=group, check=check),
        *rows_of(f"{case}, memory", "MB", most, equal, group=group, check=check, more_is_better=False),
    ]


def _measured(tool: Callable[[Path], tuple[int, float, Callable[[], Any]]], folder: Path) -> tuple[float, int, float]:
    """Tokens a second, bytes of memory, the loss before the first step. A tool gives tokens, loss and what to run."""
    from luthier.core.training.allocator import keep_freed_memory

    keep_freed_memory()
    tokens, loss, train = tool(folder)
    with most_memory() as memory:
        started = time.perf_counter()
        train()
        seconds = time.perf_counter() - started
    return tokens / seconds, memory.most, loss


def _make_model(folder: Path) -> None:
    from luthier.models.checkpoints import save_model
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    save_model(Transformer(ModelConfig(**SHAPE)), folder, eos_token_id=0, pad_token_id=3)
    save_tokenizer(train_bpe(["no text is read here"], 300), folder)


def _windows() -> np.ndarray:
    return np.random.default_rng(0).integers(4, SHAPE["vocab_size"], (STEPS * ROWS, CONTEXT + 1))


def _talks() -> list[tuple[np.ndarray, int]]:
    """Ids of each conversation, and how many of them are the question."""
    random = np.random.default_rng(0)
    ids = [random.integers(4, SHAPE["vocab_size"], int(n)) for n in random.integers(20, 201, TALKS)]
    return [(talk, len(talk) // 2) for talk in ids]


def _ours_fit(folder: Path, batches: list[Any], tokens: int) -> tuple[int, float, Callable[[], Any]]:
    import torch

    from luthier.core.training.loop import evaluate_loss, fit, next_token_loss
    from luthier.core.training.optimizers import make_optimizers
    from luthier.models.checkpoints import load_model

    model = load_model(folder)
    loss = evaluate_loss(model, batches, next_token_loss)
    optimizers = make_optimizers(model, name="adamw", lr=1e-4)
    torch.manual_seed(0)

    def train() -> None:
        with tempfile.TemporaryDirectory() as out:
            steps = len(batches)
            fit(model, optimizers, batches.__getitem__, steps=steps, factor=lambda _: 1.0, folder=Path(out))

    return tokens, loss, train


def ours_loop(folder: Path) -> tuple[int, float, Callable[[], Any]]:
    """Our loop over windows."""
    import torch

    from luthier.core.training.batches import Batch

    rows = torch.from_numpy(_windows()).view(STEPS, ROWS, CONTEXT + 1)
    batches = [Batch(r[:, :-1], r[:, 1:], torch.zeros(ROWS, CONTEXT, dtype=torch.int64)) for r in rows]
    return _ours_fit(folder, batches, rows.numel() - STEPS * ROWS)


def ours_tuning(folder: Path) -> tuple[int, float, Callable[[], Any]]:
    """Our loop over packs."""
    from luthier.core.training.batches import IGNORED, Example, pack

    examples = []
    for ids, asked in _talks():
        labels = ids[1:].copy()
        labels[: asked - 1] = IGNORED
        examples.append(Example(ids[:-1], labels, np.zeros(len(labels), np.int64)))
    batches = [pack(examples[i : i + ROWS], 512, 3) for i in range(0, TALKS, ROWS)]
    return _ours_fit(folder, batches, sum(len(ids) for ids, _ in _talks()))


def _settings(kind: Any, **more: Any) -> Any:
    return kind(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, learning_rate=1e-4, lr_scheduler_type="constant",
        use_cpu=True, report_to=[], save_strategy="no", bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        logging_steps=1000, **{"per_device_train_batch_size": ROWS, **more},
    )  # fmt: skip


def trainer_loop(folder: Path) -> tuple[int, float, Callable[[], Any]]:
    """transformers' Trainer over the same windows: T + 1 tokens a row, of which T are trained."""
    import torch
    import transformers

    rows = [{"input_ids": r, "labels": r} for r in _windows().tolist()]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    collate = lambda batch: {k: torch.tensor([r[k] for r in batch]) for k in batch[0]}  # noqa: E731
    loss = _their_loss(model, [torch.tensor(r["input_ids"]) for r in rows], [1] * len(rows))
    settings = _settings(transformers.TrainingArguments)
    trainer = transformers.Trainer(model, settings, train_dataset=rows, data_collator=collate)  # pyright: ignore[reportArgumentType]
    return STEPS * ROWS * CONTEXT, loss, trainer.train


def _trl(folder: Path, **more: Any) -> tuple[int, float, Callable[[], Any]]:
    import torch
    import transformers
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    trl = importlib.import_module("trl")
    talks = _talks()
    rows = [{"input_ids": i.tolist(), "labels": [-100] * n + i[n:].tolist()} for i, n in talks]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    loss = _their_loss(model, [torch.from_numpy(ids) for ids, _ in talks], [n for _, n in talks])
    settings = _settings(trl.SFTConfig, **more)
    trainer = trl.SFTTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=words)
    return sum(len(ids) for ids, _ in talks), loss, trainer.train


def trl_padded(folder: Path) -> tuple[int, float, Callable[[], Any]]:
    """TRL as it comes: rows padded to the longest of their batch."""
    return _trl(folder, max_length=None)


def trl_packed(folder: Path) -> tuple[int, float, Callable[[], Any]]:
    """TRL with packing into rows of 512, as many of them a step as hold 8 conversations on average."""
    return _trl(folder, packing=True, max_length=512, per_device_train_batch_size=2)


def _their_loss(model: Any, rows: list[Any], asked: list[int]) -> float:
    """Mean loss over the trained tokens, a row at a time."""
    import torch

    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids, first in zip(rows, asked, strict=True):
            logits = model(ids[None]).logits[0, first - 1 : -1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[first:], reduction="sum"))
            count += len(ids) - first
    model.train()
    return total / count


LOOPS: dict[str, Callable[..., Any]] = {"ours": ours_loop, "transformers Trainer": trainer_loop}
TUNERS: dict[str, Callable[..., Any]] = {"ours": ours_tuning, "TRL": trl_padded, "TRL packing": trl_packed}
NEEDS = {
    "transformers Trainer": ("transformers", "accelerate"),
    "TRL": ("trl", "datasets"),
    "TRL packing": ("trl", "datasets"),
}
