"""Fine-tuning: a model that can continue text learns to answer.

    pairs, conversations ──▶ wordings ──pack──▶ batch [B, T] ──▶ Σ −log p(answer's tokens) / count ──▶ fit (loop.py)

Only what the assistant says is trained (core/data/conversations.py), the token that ends its turn included. A step
takes `batch_size` examples of the epoch's random order and packs them into rows (batches.py); examples in one row do
not see each other.

**Replay.** A model that sees nothing but questions forgets the language it learned. Windows of the pretraining shards
are mixed in, so that `replay_share` of all trained tokens are plain text (Rolnick et al. 2019, arXiv:1811.11682).

**The learning rate** follows the width C of the model where none is set: 1.2e-2 · (192 / C)², for C below 96 as for
96 (at 64 and 32 the formula's 0.11 and 0.43 left 3.5 and 4.7 nats where 0.05 left 3.3 and 2.6). At C = 192 the sample
company's pairs are learned about twice as fast with it as with 5e-3; the square brings the rate near what is usual for
full fine-tuning of models of a billion parameters (about 1e-4 at C = 2,048). Adapters take 5e-3 · 192 / C, which at
C = 4,096 is the 2e-4 of QLoRA (arXiv:2305.14314, appendix B); DPO takes a tenth of either, with which
examples/preferences takes a habit back in 24 steps.

**What is trained** may be all weights or adapters (adapters.py), **the objective** the answer's tokens or a preference
between two answers (dpo.py); which examples come at which step is in tuning_batches.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import Artifact, documents_of, hash_file, write_jsonl
from luthier.core.console import counted, duration, say
from luthier.core.errors import ConfigError, InputError, TrainingError
from luthier.core.training.curves import check_curves
from luthier.core.training.finetune_config import FinetuneConfig
from luthier.core.training.out_of_memory import memory_told
from luthier.core.training.plan import quiet_unless

if TYPE_CHECKING:
    from luthier.core.data.conversations import Message
    from luthier.core.training.batches import Batch
    from luthier.core.training.examples import Found
    from luthier.core.training.loop import LossOf
    from luthier.core.training.parallel import Workers
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["FinetuneConfig", "FinetuneSummary", "finetune"]

RATE, ADAPTER_RATE = 1.2e-2, 5e-3  # learning rates at a width of 192
NARROWEST = 96  # a narrower model is tuned at the rate of this width
DPO_SHARE = 0.1  # of that, for DPO
REFERENCE = "reference.npy"


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
    objective: str = "sft"
    changed: bool = True

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.out} is up to date"
        if self.objective == "dpo":
            took = f"{counted(self.steps, 'step')} in {duration(self.seconds)}"
            return (
                f"{counted(self.pairs, 'preference')}, {took}\n"
                f"loss {self.loss:.3f}, mean of the last tenth of the steps (0.693 where none is preferred)"
            )
        held_out = f", {self.held_out_loss:.3f} on wordings held out" if self.held_out_loss is not None else ""
        return (
            f"{counted(self.pairs, 'pair')} in {counted(self.examples, 'wording')}, {counted(self.steps, 'step')} in "
            f"{duration(self.seconds)}\n"
            f"loss {self.loss:.3f} nats a trained token, mean of the last tenth of the steps{held_out}"
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
    loss_of: LossOf | None = None,
) -> FinetuneSummary:
    """Tune the model folder `model` (our own, a Llama-like one of Hugging Face's, or `hub:owner/name`) on `data`.

    `data` are questions files, or folders that hold questions.jsonl, and conversation files; `replay` is a folder of
    shards made with the tokenizer; `tokenizer` extends the model's own, which is the default, and the model grows.
    `loss_of(model, batch)` replaces the objective's loss (examples/own_objective.py); its source is part of the work.
    Raises TrainingError if nothing in `data` can be trained on.
    """
    from luthier.core.training.adapters import check_adapters
    from luthier.core.training.checkpoint import PATTERN
    from luthier.core.training.examples import read_pairs, read_wordings
    from luthier.core.training.execution import use_machine
    from luthier.core.training.parallel import start_workers
    from luthier.core.training.runs import settings, write_run
    from luthier.models.checkpoints import hub_folder

    config, model, data = config or FinetuneConfig(), hub_folder(model), [Path(path) for path in data]
    if config.precision == "bf16-pure" and _optimizer(config) != "adamw":  # which rounds by chance, as this needs
        config = replace(config, optimizer="adamw")
    if not any((model / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{model} is not a model folder: it has no config.json")
    check_curves(config)
    check_adapters(config, model, None if tokenizer is None else Path(tokenizer))
    found = read_pairs(data) if config.objective == "dpo" else read_wordings(data)
    if not found.wordings and not found.preferences:
        raise TrainingError(_nothing(found, data, config.objective))
    replay = None if replay is None else Path(replay)
    tokenizer = None if tokenizer is None else Path(tokenizer)
    inputs: dict[str, Path | str | None] = {
        "data": found.hash(),
        "model": model,
        "replay": replay,
        "tokenizer": tokenizer,
        "objective": None if loss_of is None else _source(loss_of),
    }
    files = [path for path in data if path.is_file() and not (path.parent / "manifest.json").is_file()]
    documents = [*documents_of([model, replay]), *({"path": f.name, "sha256": hash_file(f)} for f in files)]
    work = Artifact(
        out, "finetune", settings(config), inputs, documents=documents, overwrite=overwrite, progress=PATTERN
    )
    if work.done:
        return FinetuneSummary(Path(out), changed=False)
    workers, spelling = start_workers(config.parallel), tokenizer or model
    with quiet_unless(workers.main), memory_told(config):
        if not workers.main:  # its folder is made by the main process, which also writes it
            workers.wait()
            use_machine(config.threads)
            return _run(work, config, model, found, replay, spelling, loss_of, workers)
        with work:
            given = {"model": model, "data": data, "replay": replay, "tokenizer": tokenizer}
            write_run(work.folder, "finetune", config, given)
            workers.wait()
            return _run(work, config, model, found, replay, spelling, loss_of, workers)


def _run(
    work: Artifact,
    config: FinetuneConfig,
    folder: Path,
    found: Found,
    replay: Path | None,
    spelling: Path,
    loss_of: LossOf | None,
    workers: Workers,
) -> FinetuneSummary:
    from luthier.core.training.adapters import save_tuned
    from luthier.core.training.loop import fit

    run = prepare(config, folder, found, replay, spelling, keep=work.folder, workers=workers)
    run |= {} if loss_of is None else {"loss_of": loss_of}
    first, tokenizer = run["batch_at"](0), _tokenizer(spelling, config)
    _say_plan(config, found, run, tokenizer, first, replay)
    done = fit(folder=work.folder, config=config, workers=workers, save_every=config.save_every, **run)
    model = _whole(run["model"], config, folder, spelling)
    if workers.main:
        save_tuned(model, work.folder, folder, tokenizer, config)
        (work.folder / REFERENCE).unlink(missing_ok=True)
    if found.wordings and workers.main:
        write_jsonl(work.folder / "trained_pairs.jsonl", (w.row for w in found.wordings if w.row is not None))
    examples = len(found.wordings) or len(found.preferences)
    return FinetuneSummary(
        work.out, found.pairs, examples, done.steps, done.loss, done.validation_loss, done.seconds, config.objective
    )


def prepare(
    config: FinetuneConfig,
    folder: Path,
    found: Found,
    replay: Path | None,
    spelling: Path,
    keep: Path | None = None,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """What `fit` is called with: model, optimizers, batches and schedule, as functions of settings and inputs alone.

    DPO's reference is kept in the folder `keep`, so that a resumed run has the same to the last bit."""
    import torch

    from luthier.core.training.adapters import adapt
    from luthier.core.training.optimizers import make_optimizers
    from luthier.core.training.parallel import Workers, shard
    from luthier.core.training.runs import check_context, open_base, sampler
    from luthier.core.training.schedules import learning_rate_factor
    from luthier.core.training.tuning_batches import batches, measured, preference_batches, that_fit
    from luthier.models.config import flops_per_token

    workers = workers or Workers()
    tokenizer, model = _tokenizer(spelling, config), open_base(folder, spelling)
    if config.objective != "dpo":  # before a card gets the weights: it may hold them in four bits only
        adapt(model, config)
    if torch.cuda.is_available():
        model.to("cuda")
    check_context(config, model.config, folder, "and say what becomes of longer examples: --too-long")
    row = config.context
    that_fit(tokenizer, found, row, config)
    steps = max(1, round(config.epochs * -(-(len(found.wordings) or len(found.preferences)) // config.batch_size)))
    objective: dict[str, Any] = {}
    if config.objective == "dpo":
        from luthier.core.training.dpo import dpo_loss, pairs_in

        with workers.main_first():
            batch_at = preference_batches(config, found, tokenizer, row, model, keep and keep / REFERENCE)
        adapt(model, config)  # after the reference, which is the model as it was
        objective = {"loss_of": dpo_loss(config.beta), "count_of": pairs_in}
    else:
        batch_at = batches(config, found, tokenizer, row, replay)
    validation = measured(found, tokenizer, row)
    if config.keep == "best" and not validation:
        raise ConfigError(
            "keep = 'best' goes by the loss on wordings held out, and there are none\n"
            'Hold some out: {"question": …, "answer": …, "held_out": ["another wording", …]}'
        )
    shard(model, workers, _optimizer(config))
    return {
        "model": model,
        "optimizers": make_optimizers(
            model, name=_optimizer(config), lr=_rate(config, model.config.hidden_size), weight_decay=config.weight_decay
        ),
        "batch_at": batch_at,
        "steps": steps,
        "factor": lambda s: learning_rate_factor(s, steps, schedule=config.schedule, warmup=config.warmup),
        "validation": validation,
        "evaluate_every": max(1, -(-steps // 4)),
        "micro_batch": config.micro_batch,
        "max_grad_norm": config.max_grad_norm,
        "title": "Tuning",
        "flops": (2 if config.lora_rank else 3) * flops_per_token(model.config, row),
        "sample": sampler(model, tokenizer, config.sample),
        **objective,
    }


def _optimizer(config: FinetuneConfig) -> str:
    if config.optimizer != "auto":
        return config.optimizer
    return "adamw" if config.lora_rank or config.objective == "dpo" or config.parallel == "fsdp" else "muon"


def _whole(model: Any, config: FinetuneConfig, folder: Path, spelling: Path) -> Any:
    """The tuned model with every weight in one piece, whatever share of it this process held."""
    from luthier.core.training.adapters import adapt
    from luthier.core.training.parallel import whole_model
    from luthier.core.training.runs import open_base

    def make() -> Any:
        like = open_base(folder, spelling)
        adapt(like, config)
        return like

    return whole_model(model, make)


def _rate(config: FinetuneConfig, width: int) -> float:
    """The learning rate that is set, or the one for this width and what is trained: see the lecture."""
    if config.learning_rate:
        return config.learning_rate
    rate = ADAPTER_RATE * 192 / width if config.lora_rank else RATE * (192 / max(width, NARROWEST)) ** 2
    return rate * (DPO_SHARE if config.objective == "dpo" else 1)


def _tokenizer(folder: Path, config: FinetuneConfig) -> Tokenizer:
    """The tokenizer of a folder, with the chat template that is asked for."""
    from luthier.core.data.chat_templates import TEMPLATES, chat_template, check_template
    from luthier.tokenizers.formats import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if config.template != "auto":
        check_template(tokenizer, TEMPLATES[config.template])
        tokenizer.chat_template = chat_template(tokenizer, TEMPLATES[config.template])
    return tokenizer


# ---------------------------------------------------------------- words


def _source(function: Any) -> str:
    """What identifies a loss: its name and its text, so that a changed one is other work."""
    import inspect

    return f"{function.__qualname__}\n{inspect.getsource(function)}"


def _nothing(found: Found, data: Sequence[Path], objective: str) -> str:
    from luthier.core.data.conversations import OWN_PAIRS

    read = ", ".join(str(path) for path in data) or "no file"
    why = "; ".join(f"{count} {reason}" for reason, count in found.left_out.items())
    how = (
        'Make some with `luthier questions CORPUS`, or write your own: {"question": "…", "answer": "…"}, one a line.\n'
        f"In a project whose documents give none: {OWN_PAIRS}"
    )
    if objective == "dpo":
        how = 'Write {"prompt": "…", "chosen": "…", "rejected": "…"}, one a line.'
    return f"nothing to train on in {read}" + (f": {why}" if why else "") + f"\n{how}"


def _say_plan(
    config: FinetuneConfig, found: Found, run: dict[str, Any], tokenizer: Tokenizer, first: Batch, replay: Path | None
) -> None:
    from luthier.core.data.chat_templates import template_of
    from luthier.core.training.plan import pieces_said, say_held_out, say_machine, say_work

    rows, width = first.ids_BT.shape
    fill = float((first.document_BT >= 0).float().mean())
    model = run["model"]
    weights = list(model.parameters())
    whole, trained = sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad)
    frozen = sum(p.nbytes for p in (*weights, *model.buffers()) if not p.requires_grad)
    adapters = f", {trained:,} of them in adapters are trained" if config.lora_rank else ""
    adapters += ", base in four bits (not counted)" if config.quantize == "nf4" else ""
    rate = max(group["lr"] for optimizer in run["optimizers"] for group in optimizer.param_groups)
    say(f"  model        {whole:,} parameters{adapters}")
    if found.preferences:
        say(f"  preferences  {len(found.preferences):,}, DPO with β = {config.beta:g}")
    else:
        what = "pair or conversation in all its" if found.pairs == 1 else "pairs and conversations in all their"
        say(f"  examples     {len(found.wordings):,}: {found.pairs:,} {what} wordings")
    for reason, count in found.left_out.items():
        say(f"  left out     {count:,} {reason}")
    text = f", {config.replay_share:.0%} of the trained tokens plain text from {replay}" if replay else ""
    say(f"  steps        {run['steps']:,} of {config.batch_size} examples: {counted(config.epochs, 'epoch')}{text}")
    say_held_out(run)
    say_work(run, config, model.config, first, trained, frozen)
    say(f"  optimizer    {_optimizer(config)}, learning rate {rate:.1e}, {config.schedule}")
    say_machine(model, config)
    size = f"{counted(rows, 'row')} of {width} tokens{pieces_said(rows, config)}"
    say(f"  first batch  {size}, {fill:.0%} filled, {first.trained:,} tokens trained")
    say(f"  template     {template_of(tokenizer).name}")
    if found.preferences:
        for chosen in (True, False):
            say("the better answer:" if chosen else "the worse one:")
            _show_example(tokenizer, found.preferences[0].conversation(chosen))
    else:
        _show_example(tokenizer, found.wordings[0].messages)


def _show_example(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    """An example with its trained part marked, on stderr."""
    from rich.console import Console

    from luthier.core.data.conversations import encode_conversation
    from luthier.core.show.conversations import show_example

    show_example(tokenizer, *encode_conversation(tokenizer, messages), Console(stderr=True, highlight=False))
