"""A model in the terminal: what it is made of and costs, and what it thinks of a text.

The table lists every tensor once, those of a layer with the number of layers before them. Given a text, each token
stands with its loss, −log₂ p in bits, and what the model would rather have said: 0 bits is a token it was sure of, 12
bits one it held for as likely as a blind guess among 4,096. The same, attention maps and what each layer would say
already become a page (model_look.py, model_page.py) where a file for it is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from luthier.core.show.model_look import Look
    from luthier.models.config import ModelConfig
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["show_model"]

ALTERNATIVES = 3
SURE, UNSURE = 2.0, 8.0  # bits: coloured green up to the first, red from the second on


def show_model(folder: Path, text: str | None = None, page: Path | None = None) -> None:
    """Print a model folder's layers, shapes, parameters, memory and work a token; with `text` its loss at each token.

    Raises CheckpointError if it is no model folder or, after what config.json says, its weights are others; InputError
    for a text that cannot be tried.
    """
    from luthier.models.adapter_files import base_of, is_adapter
    from luthier.models.checkpoints import check_weights, load_config

    if page is not None and text is None:
        raise InputError("a page is of a text: add --text")
    if page is not None and not (page := Path(page)).parent.is_dir():
        raise InputError(f"{page}: there is no folder {page.parent}")
    folder, console = Path(folder), _console()
    whole = base_of(folder) if is_adapter(folder) else folder
    config = load_config(whole)
    _head(console, folder, config)
    if _stored(whole):
        check_weights(whole)
    if is_adapter(folder):
        _adapter(console, folder)
    if text is not None:
        console.print()
        _losses(console, folder, text, page)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    return console


# ---------------------------------------------------------------- what it is made of


def _head(console: Console, folder: Path, config: ModelConfig) -> None:
    from luthier.models.config import cache_bytes, flops_per_token, parameter_count, training_bytes

    total, inner = parameter_count(config), parameter_count(config, embedding=False)
    context = config.context
    sharing = f"{config.num_attention_heads} query heads share {config.num_key_value_heads} key and value heads"
    head = "the embedding again" if config.tie_word_embeddings else "a matrix of its own"
    work = flops_per_token(config, context)
    for line in (
        f"{folder}: a decoder of {total:,} parameters ({inner:,} without embedding and head), {config.model_type}",
        f"{config.num_hidden_layers} layers of width {config.hidden_size:,}; {sharing} of {config.head_size}",
        f"{config.vocab_size:,} tokens; head: {head}; context: {context:,} tokens{_scaled(config)}",
        f"weights: {_size(4 * total)} in float32, {_size(stored) if (stored := _stored(folder)) else 'none'} on disk",
        f"training: some {_size(training_bytes(config, 4096))} for steps of 4,096 tokens with AdamW",
        f"generating: {_size(cache_bytes(config, context))} of keys and values for a full context",
        f"work a token at full context: {_operations(work)} to read, {_operations(3 * work)} to train",
    ):
        console.print(line, markup=False)
    console.print()
    console.print(_tensors(config))


def _tensors(config: ModelConfig) -> Table:
    """Every tensor's name, shape and share; layers are equal, so the first stands for all."""
    from rich.table import Table

    from luthier.models.config import parameter_count
    from luthier.models.transformer import Transformer

    model = Transformer(config, device="meta")
    table = Table("", "tensor", box=None, padding=(0, 1), header_style="bold")
    for title in ("shape", "parameters", "share"):
        table.add_column(title, justify="right")
    total, layers = parameter_count(config), config.num_hidden_layers
    for name, weight in model.named_parameters():
        if name.startswith("layers.") and not name.startswith("layers.0."):
            continue
        times = layers if name.startswith("layers.") else 1
        count = times * weight.numel()
        shape = " × ".join(f"{n:,}" for n in weight.shape)
        each = f"{layers} ×" if times > 1 else ""
        table.add_row(each, name.replace("layers.0.", "layers.N."), shape, f"{count:,}", f"{100 * count / total:.1f}%")
    return table


def _scaled(config: ModelConfig) -> str:
    s = config.rope_scaling
    return "" if s is None else f", positions scaled by {s.rope_type}, factor {s.factor:g}"


def _stored(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _adapter(console: Console, folder: Path) -> None:
    """What an adapter folder adds to its base."""
    from luthier.models.adapter_files import adapter_facts, base_of

    config, parameters, bits = adapter_facts(folder)
    base = "in four bits (NF4)" if bits == 4 else "in full"
    console.print(
        f"\nadapter         {config.kind}, rank {config.rank}, α {config.alpha:g}: {parameters:,} parameters on "
        f"{', '.join(config.targets)}\nbase            {base_of(folder)}, {base}",
        markup=False,
    )


def _operations(count: float) -> str:
    return f"{count / 1e6:,.1f} MFLOP" if count < 1e9 else f"{count / 1e9:,.1f} GFLOP"


# ---------------------------------------------------------------- what it thinks of a text


def _losses(console: Console, folder: Path, text: str, page: Path | None) -> None:
    """One row a token: its loss, its rank, and the likeliest tokens in its place."""
    from rich.table import Table
    from rich.text import Text

    from luthier.core.show.model_look import look
    from luthier.models.adapter_files import open_model
    from luthier.tokenizers.formats import load_tokenizer

    model, tokenizer = open_model(folder), load_tokenizer(folder)
    if tokenizer.vocab_size > (rows := model.config.vocab_size):
        raise InputError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} tokens, its model only {rows:,}\n"
            "They do not belong together: copy the model's own tokenizer into the folder."
        )
    ids = [tokenizer.eos_id, *(int(i) for i in tokenizer.encode_ordinary(text))]  # a document begins after an end
    if len(ids) < 2:
        raise InputError("the text holds no token; give at least one character")
    if (found := len(ids) - 1) > (most := model.config.context):
        raise InputError(f"the text has {found:,} tokens; the model reads {most:,} at once: shorten it")
    # a model may have more rows than its tokenizer has tokens
    seen = look(model, ids, named=tokenizer.vocab_size, maps=page is not None)
    table = Table("token", "bits", "rank", "would rather have said", box=None, padding=(0, 1), header_style="bold")
    for t, token in enumerate(ids[1:]):
        bits = float(seen.bits_T[t])
        style = "green" if bits <= SURE else "red" if bits >= UNSURE else ""
        best = zip(seen.best_TN[t, :ALTERNATIVES].tolist(), seen.chance_TN[t].tolist(), strict=False)
        said = (f"{_piece(tokenizer, i)} {chance:.0%}" for i, chance in best)
        table.add_row(
            Text(_piece(tokenizer, token), style=style), f"{bits:.2f}", f"{seen.rank_T[t]:,}", Text("   ".join(said))
        )
    console.print(table)
    total = float(seen.bits_T.sum())
    size = len(text.encode())
    console.print(
        f"\n{len(ids) - 1:,} tokens, {total / (len(ids) - 1):.2f} bits a token, {total / size:.2f} bits a byte "
        f"(8 without any model)",
        markup=False,
    )
    if page is not None:
        _write_page(page, folder, seen, tokenizer)
        console.print(f"attention, logit lens and losses: {page}", markup=False)


def _write_page(page: Path, folder: Path, seen: Look, tokenizer: Tokenizer) -> None:
    from luthier.core.artifacts import atomic_open
    from luthier.core.show.model_page import model_page

    made = model_page(str(folder), seen, lambda i: _piece(tokenizer, i)[1:-1])
    with atomic_open(page) as file:
        file.write(made)


def _piece(tokenizer: Tokenizer, token: int) -> str:
    """A token as a person can tell it apart: blanks shown, bytes that are no text escaped."""
    piece = tokenizer.tokens[token]
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece).removeprefix("b")
