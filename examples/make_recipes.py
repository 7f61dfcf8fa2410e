"""Write the data of the recipes house_format and preferences from the sample company's pairs.

    python examples/make_recipes.py [FOLDER]

Every second English pair is trained, the others are asked. In the house format an answer ends with an offer of help.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
OFFER = "May we help you further?"


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(out: Path = HERE) -> None:
    """Four files below `out`."""
    lines = (HERE / "workshop" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [row for row in map(json.loads, lines) if row["language"] == "en"]
    seen, unseen = pairs[0::2], pairs[1::2]
    formed = {row["question"]: f"{row['answer']} {OFFER}" for row in pairs}
    asked = [{"question": row["question"], "set": "paraphrase"} for row in unseen]
    write(
        out / "house_format" / "format.jsonl",
        [{"prompt": row["question"], "completion": formed[row["question"]]} for row in seen],
    )
    write(
        out / "house_format" / "evaluation.jsonl",
        [{**q, "answer": formed[q["question"]], "facts": [OFFER]} for q in asked],
    )
    write(
        out / "preferences" / "preferences.jsonl",
        [{"prompt": r["question"], "chosen": r["answer"], "rejected": formed[r["question"]]} for r in seen[::2]],
    )
    write(
        out / "preferences" / "evaluation.jsonl",
        [{**q, "answer": row["answer"], "facts": row["facts"]} for q, row in zip(asked, unseen, strict=True)],
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
