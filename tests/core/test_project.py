"""luthier.toml: what is read, what is refused and in which words; new projects; the flags echoed for each stage."""

from dataclasses import dataclass
from typing import Literal

import pytest

from luthier.core.errors import ConfigError, InputError
from luthier.core.project import flags, from_table, load_project, new_project, steps


@dataclass(frozen=True)
class Example:
    size: int = 3
    rate: float = 0.5
    names: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"
    on: bool = True
    limit: int | None = None


def test_from_table_reads_every_type():
    table = {"size": 4, "rate": 1, "names": ["x", "y"], "kind": "b", "on": False, "limit": 7}
    assert from_table(Example, table, "f") == Example(4, 1.0, ("x", "y"), "b", False, 7)


@pytest.mark.parametrize(
    "table", [{"size": 1.5}, {"size": True}, {"rate": "1"}, {"names": [1]}, {"kind": "c"}, {"on": 1}, {"limit": "x"}]
)
def test_from_table_refuses_wrong_types(table):
    with pytest.raises(ConfigError, match=f"f: \\[e\\] {next(iter(table))} = "):
        from_table(Example, table, "f: [e]")


def test_unknown_key_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'names'"):
        from_table(Example, {"name": []}, "f")
    folder = new_project(tmp_path / "p")
    (folder / "luthier.toml").write_text("[colect]\n")
    with pytest.raises(ConfigError, match=r"luthier.toml: no table \[colect\]; did you mean 'collect'\?"):
        load_project(folder)
    (folder / "luthier.toml").write_text("[pretrain\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_project(folder)


def test_a_wrong_value_is_told_what_is_right(tmp_path):
    folder = new_project(tmp_path / "p")
    said = {
        '[project]\nvectors = ["word2vek"]': "did you mean 'word2vec'",
        '[project]\nvectors = "word2vec"': r"expected a list in \[ \], each item one of 'word2vec', 'glove'",
        '[tokenizer]\nvocab_size = "4096"': r"\[tokenizer\] vocab_size = '4096': expected a whole number",
        "[finetune]\nepochs = -1": r"luthier.toml: \[finetune\] epochs = -1.0: expected more than 0",
        "[pretrain]\nnum_attention_heads = 7": r"luthier.toml: \[pretrain\] num_attention_heads = 7 ",
        '[pretrain]\nmodel = "demoo"': "did you mean 'demo'",
    }
    for text, message in said.items():
        (folder / "luthier.toml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_project(folder)


def test_flags_are_what_differs_from_the_defaults():
    assert flags(Example()) == ""
    assert flags(Example(size=9, names=("a b", "c"), on=False)) == "--size 9 --names 'a b' c --no-on"


def test_new_project_reads_back_and_is_never_overwritten(tmp_path):
    (tmp_path / "my documents").mkdir()
    folder = new_project(tmp_path / "handbook", documents=(tmp_path / "my documents",))
    project = load_project(folder)
    assert project.config.name == "handbook"
    assert project.path(project.config.documents[0]) == tmp_path / "my documents"
    assert project.built("model") == folder / "build" / "model"
    with pytest.raises(InputError, match="exists already"):
        new_project(folder)
    with pytest.raises(InputError, match=r"no config\.json"):
        new_project(tmp_path / "other", base=tmp_path)
    with pytest.raises(InputError, match="luthier new NAME"):
        load_project(tmp_path)


def test_a_base_model_stands_for_model_and_tokenizer(tmp_path):
    folder = new_project(tmp_path / "p")
    settings = folder / "luthier.toml"
    settings.write_text(settings.read_text().replace("[project]", '[project]\nbase = "../base"'))
    project = load_project(folder)
    assert project.built("model") == project.built("tokenizer") == folder / ".." / "base"
    assert project.built("tuned") == folder / "build" / "tuned"


def commands(folder, table):
    (folder / "luthier.toml").write_text(table)
    return {step.verb: step.command for step in steps(load_project(folder))}


def test_named_stages_only_are_run_and_read_only_what_they_make(tmp_path):
    folder = new_project(tmp_path / "p")
    told = commands(
        folder,
        '[project]\nbase = "../base"\nconversations = ["talks.jsonl"]\nevaluation = ["e.jsonl"]\n'
        'stages = ["finetune", "evaluate"]\n[finetune]\nlora_rank = 4',
    )
    assert list(told) == ["finetune", "evaluate"]
    assert told["finetune"] == "luthier finetune ../base talks.jsonl --out build/tuned --lora-rank 4"
    assert told["evaluate"] == "luthier evaluate ../base build/tuned --questions e.jsonl --out build/evaluation"
    told = commands(folder, '[project]\nstages = ["collect", "train-tokenizer", "encode", "pretrain"]')
    assert list(told) == ["collect", "train-tokenizer", "encode", "pretrain"]
    assert "--embedding" not in told["pretrain"]
    with pytest.raises(ConfigError, match="did you mean 'pretrain'"):
        commands(folder, '[project]\nstages = ["pretrian"]')


def test_a_base_may_be_extended_and_gone_on_from(tmp_path):
    folder = new_project(tmp_path / "p")
    told = commands(folder, '[project]\nbase = "../base"\nextend = true\nvectors = []')
    assert "--extend ../base" in told["train-tokenizer"] and "--base ../base" in told["pretrain"]
    assert told["encode"].startswith("luthier encode build/corpus --tokenizer build/tokenizer ")
    assert told["finetune"].startswith("luthier finetune build/model build/corpus/questions.jsonl ")
    told = commands(folder, '[project]\nbase = "../base"\nextend = true\nstages = ["pretrain", "evaluate"]')
    assert told["evaluate"] == "luthier evaluate ../base build/model --out build/evaluation"
    assert "train-tokenizer" not in commands(folder, '[project]\nbase = "../base"')
    with pytest.raises(ConfigError, match=r"extend = true .*base = "):
        commands(folder, "[project]\nextend = true")
