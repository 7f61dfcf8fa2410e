"""Two recipes on the sample company's model: a house format by LoRA, and preferences by DPO.

The model comes from our own recipe: `luthier demo` pretrains and tunes it on the company's documents (3 minutes). Then

    python examples/house_format.py luthier-demo OUT

1. style transfer   half of the company's answers are rewritten in a house format, which ends with an offer of help; an
                    adapter of rank 8 learns it and is merged: OUT/format
2. preferences      somebody finds the offer tiresome: for a quarter of the questions the plain answer is preferred to
                    the one with the offer; DPO teaches it to an adapter on that model: OUT/preferred

Each is asked the other half of the questions, which no tuning saw. What is counted: answers in the house format, and
answers that hold the right sentence word for word. The result of a run stands in examples/README.md.
"""

import json
import sys
import time
from pathlib import Path

from luthier.core.assistant.assistant import Assistant, AssistantConfig
from luthier.core.training.finetune import FinetuneConfig, finetune

OFFER = "May we help you further?"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")  # facts sit in the other products: leave them alone


def in_format(answer: str) -> str:
    """The house format of an answer."""
    return f"{answer} {OFFER}"


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def judge(folder: Path, rows: list[dict[str, str]]) -> str:
    """How many answers are in the house format, and how many hold the answer word for word."""
    answers = Assistant(folder, None, AssistantConfig(min_confidence=0.0)).answers([row["question"] for row in rows])
    formed = sum(a.text.endswith(OFFER) for a in answers)
    right = sum(row["answer"] in a.text for row, a in zip(rows, answers, strict=True))
    return f"{formed} of {len(rows)} in the house format, {right} with the right answer"


def main(project: Path, out: Path) -> None:
    tuned = project / "build" / "tuned"
    lines = (tuned / "trained_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = list({row["answer"]: row for row in map(json.loads, lines)}.values())  # each answer once
    seen, unseen = rows[0::2], rows[1::2]
    out.mkdir(parents=True, exist_ok=True)

    styled = write(
        out / "format.jsonl", [{"prompt": r["question"], "completion": in_format(r["answer"])} for r in seen]
    )
    pairs = [{"prompt": r["question"], "chosen": r["answer"], "rejected": in_format(r["answer"])} for r in seen[::2]]
    preferred = write(out / "preferences.jsonl", pairs)
    began = time.monotonic()
    config = FinetuneConfig(lora_rank=8, lora_targets=ATTENTION, learning_rate=1e-2, epochs=3, batch_size=8, merge=True)
    print(finetune(tuned, [styled], out / "format", config))
    between = time.monotonic()
    config = FinetuneConfig(objective="dpo", lora_rank=8, epochs=8, batch_size=8)
    print(finetune(out / "format", [preferred], out / "preferred", config))
    ended = time.monotonic()

    print(f"before           {judge(tuned, unseen)}")
    print(f"style transfer   {judge(out / 'format', unseen)} ({between - began:.0f} s)")
    print(f"preferences      {judge(out / 'preferred', unseen)} ({ended - between:.0f} s)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
