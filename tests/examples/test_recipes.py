"""The recipes in examples/: their settings are read, their data is what make_recipes.py writes, and the first steps of
each lose what they lost before.

The curves in golden_curves.json were made by `python tests/examples/test_recipes.py` on an x86-64 CPU with one thread.
So that they take seconds, all recipes read the sample company's plain texts here, and those that tune start from a
model with random weights; all settings are the recipe's. Other machines round otherwise: 1% is allowed, less than
another seed or optimizer makes. Pretraining's first steps lie in its warm-up: they say nothing of the schedule's end.
"""

import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.artifacts import hash_file
from luthier.core.data.shards import write_shards
from luthier.core.project import from_table, load_project, steps
from luthier.core.training.examples import read_pairs, read_wordings
from luthier.core.training.finetune import prepare as prepare_tuning
from luthier.core.training.loop import fit
from luthier.core.training.pretrain import Given, PretrainConfig, prepare
from luthier.core.training.tokenizer import TokenizerConfig, train_tokenizer
from luthier.models.checkpoints import save_model
from luthier.models.config import preset
from luthier.models.transformer import Transformer
from luthier.tokenizers.formats import load_tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CURVES = Path(__file__).with_name("golden_curves.json")
PROJECTS = ("general", "handbook", "handbook_lora", "house_format", "preferences", "vocabulary", "workshop")
TOLERANCE = 0.01
# recipe → steps that are replayed: those of the pretraining recipes are long
STEPS = {"shakespeare": 20, "handbook": 5, "vocabulary": 5, "handbook_lora": 12, "house_format": 20, "preferences": 20}


def texts() -> list[str]:
    return [path.read_text("utf-8") for path in sorted((EXAMPLES / "workshop" / "sources").glob("*.md"))]


def made(folder: Path, vocab_size: int, name: str, old: Path | None = None) -> Path:
    """Tokenizer and shards of the company's texts; `old` is a tokenizer to extend."""
    files = sorted((EXAMPLES / "workshop" / "sources").glob("*.md"))
    train_tokenizer(files, folder / f"tokenizer-{name}", TokenizerConfig(vocab_size=vocab_size, add=200), extend=old)
    tokenizer = load_tokenizer(folder / f"tokenizer-{name}")
    ids = [np.asarray(tokenizer.encode_ordinary(text)) for text in texts()]
    digest = hash_file(folder / f"tokenizer-{name}" / "tokenizer.json")
    write_shards(
        folder / f"shards-{name}", ids, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, tokenizer=digest
    )
    return folder / f"tokenizer-{name}"


def curve(folder: Path, recipe: str, **change: Any) -> list[float]:
    """The losses of a recipe's first steps, computed in `folder`, with settings changed."""
    place = folder / "-".join([recipe, *change])
    place.mkdir()
    if recipe == "shakespeare":
        import tomllib

        table = tomllib.loads((EXAMPLES / recipe / "luthier.toml").read_text())["pretrain"]
        config = from_table(PretrainConfig, table, recipe)
    else:
        project = load_project(EXAMPLES / recipe)
        config = project.settings["pretrain" if recipe in ("handbook", "vocabulary") else "finetune"]
    config = replace(config, threads=1, **change)
    model = folder / "base"
    if isinstance(config, PretrainConfig):
        base = model if recipe == "vocabulary" else None
        tokenizer = made(folder, 260 if recipe == "shakespeare" else 600, recipe, base)
        run = prepare(config, Given((folder / f"shards-{recipe}",), base, None, tokenizer)).arguments
    else:
        files = [project.path(p) for p in project.config.conversations] or [EXAMPLES / "workshop" / "pairs.jsonl"]
        found = read_pairs(files) if config.objective == "dpo" else read_wordings(files)
        run = prepare_tuning(config, model, found, None, model)
    fit(folder=place, config=config, until=STEPS[recipe], save_every=1e9, **{**run, "validation": ()})
    rows = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@contextmanager
def base_model(folder: Path) -> Iterator[Path]:
    """A model with random weights, and its tokenizer, in `folder`/base."""
    made(folder, 600, "base").rename(folder / "base")
    shape = preset("demo", vocab_size=load_tokenizer(folder / "base").vocab_size)
    save_model(Transformer(shape, seed=7), folder / "base")
    yield folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Iterator[Path]:
    with base_model(tmp_path_factory.mktemp("recipes")) as folder:
        yield folder


@pytest.mark.parametrize("recipe", STEPS)
def test_the_first_steps_lose_what_they_lost_before(place: Path, recipe: str) -> None:
    golden = json.loads(CURVES.read_text())[recipe]
    assert len(golden) == STEPS[recipe]
    np.testing.assert_allclose(curve(place, recipe), golden, rtol=TOLERANCE)


@pytest.mark.parametrize("change", [{"seed": 1}, {"optimizer": "muon"}])
def test_the_tolerance_tells_another_run(place: Path, change: dict[str, Any]) -> None:
    golden = json.loads(CURVES.read_text())["house_format"]
    assert not np.allclose(curve(place, "house_format", **change), golden, rtol=TOLERANCE)


@pytest.mark.parametrize("recipe", PROJECTS)
def test_every_recipe_is_read_and_what_it_names_is_there(recipe: str) -> None:
    project = load_project(EXAMPLES / recipe)
    config = project.config
    named = [*config.pairs, *config.evaluation, *config.conversations]
    named += config.documents if config.runs("collect") else []
    assert all(project.path(name).exists() for name in named)
    if config.base:  # what another recipe makes
        other, build, _ = config.base.removeprefix("../").split("/")
        assert build == "build" and (EXAMPLES / other / "luthier.toml").is_file()
    verbs = [step.verb for step in steps(project)]
    assert verbs and (not config.stages or set(verbs) == set(config.stages))


def test_the_data_is_what_the_script_writes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["make_recipes.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "make_recipes.py"), run_name="__main__")
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert len(files) == 4
    for file in files:
        assert (EXAMPLES / file).read_bytes() == (tmp_path / file).read_bytes(), file
    trained, asked = (
        {json.loads(line)[key] for line in (EXAMPLES / "house_format" / name).read_text().splitlines()}
        for name, key in (("format.jsonl", "prompt"), ("evaluation.jsonl", "question"))
    )
    assert trained and asked and not trained & asked


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name, base_model(Path(name)) as folder:
        found = {recipe: [round(loss, 6) for loss in curve(folder, recipe)] for recipe in STEPS}
    CURVES.write_text(json.dumps(found) + "\n")
