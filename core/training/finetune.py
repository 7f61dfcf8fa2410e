"""Fine-tuning: a model that can continue text learns to answer.

    pairs, conversations ──▶ wordings ──pack──▶ batch [B, T] ──▶ Σ −log p(answer's tokens) / count ──▶ fit (loop.py)

Only what the assistant says is trained (core/data/conversations.py), the token that ends its turn included. A step
takes `batch_size` examples of the epoch's random order and packs them into rows (batches.py); examples in one row do
not see each other.

**Replay.** A model that sees nothing but questions forgets the language it learned. Windows of the pretraining shards
are mixed in, so that `replay_share` of all trained tokens are plain text (Rolnick et al. 2019, arXiv:1811.11682).

**The learning rate** follows the width C of the model where it is left at 0: 1.2e-2 · (192 / C)². At C = 192 the
sample company's pairs are learned about twice as fast with it as with 5e-3; the square brings the rate near what is
usual for full fine-tuning of models of a billion parameters (about 1e-4 at C = 2,048).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.artifacts import Artifact, documents_of, hash_file, write_jsonl
from luthier.core.console import duration, say
from luthier.core.errors import ConfigError, InputError, TrainingError
from luthier.core.training.curves import check_curves
from luthier.core.training.loop_config import LoopConfig

if TYPE_CHECKING:
    from luthier.core.training.batches import Batch, Example
    from luthier.core.training.examples import Found, Wording
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["FinetuneConfig", "FinetuneSummary", "finetune"]

RATE = 1.2e-2  # learning rate at a width of 192
MEASURED = 64  # held-out wordings whose loss is followed while training


@dataclass(frozen=True)
class FinetuneConfig(LoopConfig):
    """How a model is tuned on pairs and conversations."""

    epochs: float = 6.0
    """Passes over all examples; each wording of a pair is one."""
    batch_size: int = 24
    """Examples a step."""
    context: int = 256
    """Longest row in tokens; a longer example is left out and reported. At most the model's longest text."""
    micro_batch: int = 0
    """Most rows at once, to fit memory; 0: all. The result is the same up to rounding."""
    vary_share: float = 0.0
    """Share of the questions shown in a variation: lower case, no question mark, a word left out. With 60 pairs in four
    wordings each it did not help: 0.75 of the held-out wordings right with a half varied, 0.82 without (one run)."""
    vary_drop: float = 0.1
    """Chance that a word is left out of a varied question."""
    replay_share: float = 0.4
    """Share of the trained tokens that are plain text from --replay."""
    general_share: float = 0.0
    """Share of the replayed windows that is general text, where the shards hold any."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices of the layers and AdamW for the rest, or AdamW for all."""
    learning_rate: float = 0.0
    """Highest learning rate; 0: from the model's width."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """How the learning rate falls (core/training/schedules.py)."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Decay of the layers' matrices, times the learning rate a step."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this norm; 0: never."""
    seed: int = 0
    """Seed of the order of the examples and of their variations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "context"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected more than 0")
        for name in ("micro_batch", "learning_rate", "weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected 0 or more")
        for name in ("vary_share", "vary_drop", "replay_share", "general_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected 0 to below 1")


@dataclass
class FinetuneSummary:
    """What a run did; `loss` is the mean of its last tenth, in nats a trained token."""

    out: Path
    pairs: int = 0
    examples: int = 0
    steps: int = 0
    loss: float = 0.0
    held_out_loss: float | None = None
    seconds: float = 0.0
    changed: bool = True

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.out} is up to date"
        held_out = f", {self.held_out_loss:.3f} on wordings held out" if self.held_out_loss is not None else ""
        return (
            f"{self.pairs:,} pairs in {self.examples:,} wordings, {self.steps:,} steps in {duration(self.seconds)}\n"
            f"loss {self.loss:.3f} nats a trained token{held_out}"
        )


def finetune(
    model: Path,
    data: Sequence[Path],
    out: Path,
    config: FinetuneConfig | None = None,
    *,
    replay: Path | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> FinetuneSummary:
    """Tune the model folder `model` (our own, or a Llama-like one of Hugging Face's) on `data`.

    `data` are questions files, or folders that hold questions.jsonl, and conversation files; `replay` is a folder of
    shards made with the tokenizer; `tokenizer` extends the model's own, which is the default, and the model grows.
    Raises TrainingError if nothing in `data` can be trained on.
    """
    from luthier.core.training.examples import read_wordings
    from luthier.core.training.pretrain import settings, write_run

    config, model, data = config or FinetuneConfig(), Path(model), [Path(path) for path in data]
    if not (model / "config.json").is_file():
        raise InputError(f"{model} is not a model folder: it has no config.json")
    check_curves(config)
    found = read_wordings(data)
    if not found.wordings:
        raise TrainingError(_nothing(found, data))
    replay = None if replay is None else Path(replay)
    tokenizer = None if tokenizer is None else Path(tokenizer)
    inputs: dict[str, Path | str | None] = {
        "data": found.hash(),
        "model": model,
        "replay": replay,
        "tokenizer": tokenizer,
    }
    files = [path for path in data if path.is_file() and not (path.parent / "manifest.json").is_file()]
    documents = [*documents_of([model, replay]), *({"path": f.name, "sha256": hash_file(f)} for f in files)]
    work = Artifact(out, "finetune", settings(config), inputs, documents=documents, overwrite=overwrite)
    if work.done:
        return FinetuneSummary(Path(out), changed=False)
    with work:
        given = {"model": model, "data": data, "replay": replay, "tokenizer": tokenizer}
        write_run(work.folder, "finetune", config, given)
        return _run(work, config, model, found, replay, tokenizer or model)


def _run(
    work: Artifact, config: FinetuneConfig, folder: Path, found: Found, replay: Path | None, spelling: Path
) -> FinetuneSummary:
    from luthier.core.training.loop import fit
    from luthier.core.training.pretrain import save

    run = prepare(config, folder, found, replay, spelling)
    rate = max(group["lr"] for optimizer in run["optimizers"] for group in optimizer.param_groups)
    first, tokenizer = run["batch_at"](0), _tokenizer(spelling)
    _say_plan(config, found, run["model"], tokenizer, run["steps"], rate, first, replay)
    done = fit(folder=work.folder, config=config, save_every=config.save_every, **run)
    save(run["model"], work.folder, spelling, folder)
    write_jsonl(work.folder / "trained_pairs.jsonl", (w.row for w in found.wordings if w.row is not None))
    return FinetuneSummary(
        work.out, found.pairs, len(found.wordings), done.steps, done.loss, done.validation_loss, done.seconds
    )


def prepare(config: FinetuneConfig, folder: Path, found: Found, replay: Path | None, spelling: Path) -> dict[str, Any]:
    """What `fit` is called with: model, optimizers, batches and schedule, as functions of settings and inputs alone."""
    from luthier.core.training.batches import pack
    from luthier.core.training.optimizers import make_optimizers
    from luthier.core.training.pretrain import open_base, sampler, use_machine
    from luthier.core.training.schedules import learning_rate_factor
    from luthier.models.config import flops_per_token

    use_machine(config.threads)
    tokenizer, model = _tokenizer(spelling), open_base(folder, spelling)
    row = min(config.context, model.config.max_position_embeddings)
    found.wordings = _that_fit(tokenizer, found, row)
    steps = max(1, round(config.epochs * -(-len(found.wordings) // config.batch_size)))
    rate = config.learning_rate or RATE * (192 / model.config.hidden_size) ** 2
    held_out = [_encoded(tokenizer, w) for w in found.held_out[:: max(1, len(found.held_out) // MEASURED)]]
    held_out = [e for e in held_out if len(e) <= row]
    return {
        "model": model,
        "optimizers": make_optimizers(model, name=config.optimizer, lr=rate, weight_decay=config.weight_decay),
        "batch_at": batches(config, found, tokenizer, row, replay),
        "steps": steps,
        "factor": lambda s: learning_rate_factor(s, steps, schedule=config.schedule, warmup=config.warmup),
        "validation": [pack(held_out, row, tokenizer.pad_id)] if held_out else [],
        "evaluate_every": max(1, -(-steps // 4)),
        "micro_batch": config.micro_batch,
        "max_grad_norm": config.max_grad_norm,
        "title": "Tuning",
        "flops": 3 * flops_per_token(model.config, row),
        "sample": sampler(model, tokenizer, config.sample),
    }


def _tokenizer(folder: Path) -> Tokenizer:
    from luthier.tokenizers.formats import load_tokenizer

    return load_tokenizer(folder)


# ---------------------------------------------------------------- batches


def batches(
    config: FinetuneConfig, found: Found, tokenizer: Tokenizer, row: int, replay: Path | None
) -> Callable[[int], Batch]:
    """The batch of every step, as a function of the step alone."""
    from luthier.core.training.batches import chance, pack
    from luthier.core.training.examples import vary, with_question
    from luthier.core.training.examples import wordings_of as asked_in

    wordings, held = found.wordings, asked_in(found.held_out)
    plain = [_encoded(tokenizer, w) for w in wordings]
    per_epoch = -(-len(wordings) // config.batch_size)
    trained = sum(int((e.labels >= 0).sum()) for e in plain) / per_epoch
    replayed = _replayed(config, tokenizer, row, replay, trained)

    def shown(epoch: int, i: int) -> Example:
        """Example i as this epoch shows it; a variation that says what a held-out wording says is not shown."""
        messages, random = wordings[i].messages, chance(config.seed, 11, epoch, i)
        question = next(m.content for m in reversed(messages) if m.role == "user")
        varied = vary(question, random, share=config.vary_share, drop=config.vary_drop)
        if varied == question or _same_words(varied) in held:
            return plain[i]
        example = _encoded(tokenizer, wordings[i], with_question(messages, varied))
        return example if len(example) <= row else plain[i]

    def batch_at(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        order = chance(config.seed, 10, epoch).permutation(len(wordings))
        chosen = order[place * config.batch_size : (place + 1) * config.batch_size]
        return pack([*(shown(epoch, int(i)) for i in chosen), *replayed(step)], row, tokenizer.pad_id)

    return batch_at


def _replayed(
    config: FinetuneConfig, tokenizer: Tokenizer, row: int, replay: Path | None, trained: float
) -> Callable[[int], list[Example]]:
    """Windows of plain text for every step: so many that their tokens are `replay_share` of all trained ones."""
    if replay is None or not config.replay_share:
        return lambda step: []
    from luthier.core.data.shards import open_shards
    from luthier.core.training.batches import mixed
    from luthier.core.training.pretrain import sources

    shards = open_shards(Path(replay), "train")
    if shards.vocab_size != tokenizer.vocab_size:
        raise InputError(
            f"{replay} was encoded with another tokenizer ({shards.vocab_size:,} tokens, the model's has "
            f"{tokenizer.vocab_size:,})\nEncode again with the model's folder: luthier encode … --tokenizer MODEL"
        )
    if not len(shards.tokens):
        return lambda step: []
    window = min(128, row)
    own, general = sources(shards, context=window, seed=config.seed, number=2)
    a_step = trained * config.replay_share / (1 - config.replay_share) / window
    share = config.general_share if general is not None else 0.0
    return lambda step: [
        mixed(own, general, share, place) for place in range(int(step * a_step), int((step + 1) * a_step))
    ]


def _encoded(tokenizer: Tokenizer, wording: Wording, messages: Any = None) -> Example:
    from luthier.core.training.examples import encode_wording

    return encode_wording(tokenizer, messages or wording.messages, wording.source)


def _same_words(question: str) -> str:
    from luthier.core.data.questions import wording

    return wording(question)


def _that_fit(tokenizer: Tokenizer, found: Found, row: int) -> list[Wording]:
    """The wordings that fit into a row; the others are counted and the first is named."""
    lengths = [len(_encoded(tokenizer, w)) for w in found.wordings]
    fit = [w for w, n in zip(found.wordings, lengths, strict=True) if n <= row]
    if len(fit) < len(lengths):
        first = next(w for w, n in zip(found.wordings, lengths, strict=True) if n > row)
        where = f"the longest has {max(lengths):,} tokens, the first is {first.source}"
        if not fit:
            raise TrainingError(f"no example fits into {row} tokens: {where}\nRaise context, or shorten the answers.")
        found.left_out[f"examples longer than {row} tokens ({where})"] += len(lengths) - len(fit)
    return fit


# ---------------------------------------------------------------- words


def _nothing(found: Found, data: Sequence[Path]) -> str:
    read = ", ".join(str(path) for path in data) or "no file"
    why = "; ".join(f"{count} {reason}" for reason, count in found.left_out.items())
    return (
        f"no pairs to train on in {read}" + (f": {why}" if why else "") + "\n"
        "Make some with `luthier questions CORPUS`, or write your own: "
        '{"question": "…", "answer": "…"}, one a line.'
    )


def _say_plan(
    config: FinetuneConfig,
    found: Found,
    model: Any,
    tokenizer: Tokenizer,
    steps: int,
    rate: float,
    first: Batch,
    replay: Path | None,
) -> None:
    from luthier.core.training.pretrain import threads_said

    rows, width = first.ids_BT.shape
    fill = float((first.document_BT >= 0).float().mean())
    say(f"  model        {sum(p.numel() for p in model.parameters()):,} parameters")
    say(f"  examples     {len(found.wordings):,}: {found.pairs:,} pairs and conversations in all their wordings")
    for reason, count in found.left_out.items():
        say(f"  left out     {count:,} {reason}")
    text = f", {config.replay_share:.0%} of the trained tokens plain text from {replay}" if replay else ""
    say(f"  steps        {steps:,} of {config.batch_size} examples: {config.epochs:g} epochs{text}")
    say(f"  first batch  {rows} rows of {width} tokens, {fill:.0%} filled, {first.trained:,} tokens trained")
    say(f"  optimizer    {config.optimizer}, learning rate {rate:.1e}, {threads_said()}")
    _show_example(tokenizer, found.wordings[0])


def _show_example(tokenizer: Tokenizer, wording: Wording) -> None:
    """The first example with its trained part marked, on stderr."""
    from rich.console import Console

    from luthier.core.data.conversations import encode_conversation
    from luthier.core.show.conversations import show_example

    show_example(tokenizer, *encode_conversation(tokenizer, wording.messages), Console(stderr=True, highlight=False))
