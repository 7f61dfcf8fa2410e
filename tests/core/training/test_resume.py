"""`kill -9` at random moments, then the same command again: weights and metrics are those of the undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.core.data.shards import write_shards
from luthier.core.training.finetune import FinetuneConfig, finetune
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

ROWS = [{"question": f"What is part {i}?", "answer": f"Part {i} is the {i} of {i}."} for i in range(12)]
TINY = "hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1"
PRETRAIN = f"PretrainConfig({TINY}, context=32, batch_size=4, steps=24, save_every=SAVE, evaluate_every=7, threads=1)"
FINETUNE = "FinetuneConfig(epochs=8, batch_size=4, context=64, save_every=SAVE, threads=1MORE)"
TUNE = f"finetune(Path('whole-pretrain'), [Path('FILE')], Path('OUT'), {FINETUNE}, replay=REPLAY)"


def tuning(more: str, file: str = "q.jsonl", replay: str = "None") -> str:
    return TUNE.replace("MORE", more).replace("FILE", file).replace("REPLAY", replay)


IMPORTS = (
    "from pathlib import Path\n"
    "from luthier.core.training.pretrain import PretrainConfig, pretrain\n"
    "from luthier.core.training.finetune import FinetuneConfig, finetune\n"
)
CALLS = {
    "pretrain": f"pretrain(Path('shards'), Path('OUT'), {PRETRAIN}, tokenizer=Path('tokenizer'))",
    "finetune": tuning("", replay="Path('shards')"),
    "lora": tuning(", lora_rank=2"),
    "dpo": tuning(", objective='dpo'", "p.jsonl"),
}


def call(verb: str, out: str, save: float) -> str:
    return CALLS[verb].replace("OUT", out).replace("SAVE", str(save))


def run_here(verb: str, out: str, save: float) -> None:
    names = {"Path": Path, "PretrainConfig": PretrainConfig, "pretrain": pretrain}
    eval(call(verb, out, save), {**names, "FinetuneConfig": FinetuneConfig, "finetune": finetune})


def kill_at(verb: str, out: str, lines: int, pause: float) -> None:
    """Start the run in a process of its own and kill it `pause` seconds after it has logged `lines` lines."""
    log = Path(f".{out}.building") / "metrics.jsonl"
    before = log.stat().st_mtime_ns if log.is_file() else 0
    process = subprocess.Popen([sys.executable, "-c", IMPORTS + call(verb, out, 0)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        touched = log.is_file() and log.stat().st_mtime_ns != before
        if touched and log.read_bytes().count(b"\n") >= lines:
            time.sleep(pause)
            break
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    text = " ".join(f"{r['question']} {r['answer']}" for r in ROWS)
    tokenizer = train_bpe([text] * 3, 300)
    save_tokenizer(tokenizer, folder / "tokenizer")
    ids = tokenizer.encode_ordinary(text)
    documents = [ids[i : i + 40 + i % 7] for i in range(0, len(ids), 23)]
    write_shards(folder / "shards", documents, [ids[:90]], vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    preferred = [{"prompt": r["question"], "chosen": r["answer"], "rejected": "No idea."} for r in ROWS]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preferred))
    before = Path.cwd()
    os.chdir(folder)
    run_here("pretrain", "whole-pretrain", 1000)
    yield folder
    os.chdir(before)


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "lora", "dpo"])
def test_killed_runs_end_bit_equal(place, verb):
    whole, cut = f"whole-{verb}", f"cut-{verb}"
    if verb != "pretrain":
        run_here(verb, whole, 0)
    chance = random.Random()  # other moments every time; they are printed
    for lines in sorted(chance.sample(range(2, 20), 2 if verb == "pretrain" else 1)):
        pause = chance.uniform(0, 0.02)
        print(f"{verb}: killed {pause:.4f} s after line {lines}")
        kill_at(verb, cut, lines, pause)
        assert not Path(cut).exists()
    run_here(verb, cut, 0)
    weights = "adapter_model.safetensors" if verb == "lora" else "model.safetensors"
    for name in (weights, "metrics.jsonl"):
        assert Path(whole, name).read_bytes() == Path(cut, name).read_bytes(), name
    rows = [json.loads(line) for line in Path(cut, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 25))


@pytest.fixture
def heard():
    """Signals as a program has them that was started in the foreground: in the background SIGINT is ignored."""
    before = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in before.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interrupt_while_the_last_measurement_is_made(place, monkeypatch, heard):
    """It is not forgotten: nothing else follows, and the run is finished by the same command."""
    from luthier.core.training import loop

    monkeypatch.chdir(place)
    run_here("pretrain", "calm", 1e9)
    real, measured = loop.evaluate_loss, []

    def interrupt(*args, **kwargs):
        measured.append(1)
        if len(measured) == 5:  # before steps 0, 7, 14, 21, and after the last
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "evaluate_loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_here("pretrain", "late", 1e9)
    assert not Path("late").exists() and [p.name for p in Path(".late.building").glob("step-*")] == ["step-00000024"]
    run_here("pretrain", "late", 1e9)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert Path("late", name).read_bytes() == Path("calm", name).read_bytes()


def test_an_interrupt_that_is_ignored_stays_so(heard):
    """As a shell has it for what it starts in the background."""
    from luthier.core.training.checkpoint import interrupts

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interrupted() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_step_is_ended_and_kept(place, number, monkeypatch, heard):
    """Ctrl-C long before the clock asks for a checkpoint loses no step, and the run goes on to the same bits."""
    monkeypatch.chdir(place)
    run_here("pretrain", f"calm-{number}", 1e9)
    from luthier.core.training import loop

    real, sent = loop.trained_tokens, []

    def interrupt(batch):  # in the middle of a step
        sent.append(batch)
        if len(sent) == 5:
            os.kill(os.getpid(), number)
        return real(batch)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(loop.fit, "__kwdefaults__", {**(loop.fit.__kwdefaults__ or {}), "count_of": interrupt})
    with pytest.raises(KeyboardInterrupt):
        run_here("pretrain", f"broken-{number}", 1e9)
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    building = Path(f".broken-{number}.building")
    steps = [json.loads(line)["step"] for line in (building / "metrics.jsonl").read_text().splitlines()]
    assert [p.name for p in building.glob("step-*")] == [f"step-{steps[-1]:08d}"] and 0 < steps[-1] <= 5
    run_here("pretrain", f"broken-{number}", 1e9)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert Path(f"broken-{number}", name).read_bytes() == Path(f"calm-{number}", name).read_bytes()
