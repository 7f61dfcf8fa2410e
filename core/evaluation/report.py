"""report.html: what the evaluation measured, as one page that needs no other file.

The page says in plain sentences what tuning did and did not do (`verdict`), shows the before/after table, the pictures
(loss curves, rates with intervals, a map of the vectors, token statistics) and every single answer. Sentences are made
from the numbers of this run; where a number is missing the sentence is missing too.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import atomic_open, read_jsonl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from luthier.core.evaluation.samples import Sample
    from luthier.models.vectors import Vectors

__all__ = [
    "BITS_COLUMNS",
    "MAP_CAPTION",
    "PAGE",
    "SET_NAMES",
    "SYSTEM_NAMES",
    "TABLE_COLUMNS",
    "bits_rows",
    "draw_map",
    "html_table",
    "table_rows",
    "verdict",
    "write_report",
]

PAGE = Path(__file__).with_name("report.html")
SET_NAMES = {
    "trained": "trained questions (memorisation)",
    "paraphrase": "other wordings, by a person",
    "rephrased": "other wordings, by rule",
    "unseen": "documents never trained on",
    "volatile": "volatile facts",
    "unanswerable": "unanswerable questions",
}
SYSTEM_NAMES = {"before": "before", "tuned": "tuned", "retrieved": "retrieved", "both": "both"}
TABLE_COLUMNS = ("questions", "system", "n", "exact match", "F1", "right fact", "'not found'")
BITS_COLUMNS = ("held-out text", "system", "bytes", "bits per byte", "95%")
MAP_CAPTION = "on the first two principal components; where names would overlap, the rarer one's point has none."
COLOURS = {"before": "#b9b1a4", "tuned": "#9a4b1f", "retrieved": "#3f6c8f", "both": "#2f6b46"}


# ---------------------------------------------------------------- sentences


def percent(estimate: dict[str, Any]) -> str:
    """`63% [48, 76]`, or a dash where nothing was asked."""
    if not estimate or not estimate["n"]:
        return "–"
    return f"{100 * estimate['value']:.0f}% [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"


def _row(results: dict[str, Any], name: str, system: str) -> dict[str, Any] | None:
    return next((r for r in results["table"] if r["set"] == name and r["system"] == system), None)


def _memorised(tuned: dict[str, Any], before: dict[str, Any] | None) -> str:
    """What the share of trained questions answered word for word says, and what it does not."""
    share = tuned["exact_match"]
    if share["value"] == 0:
        return "Nothing was memorised: train longer or on fewer pairs before asking what the model understands."
    if before and share["value"] <= before["exact_match"]["value"]:
        return "Tuning added nothing to it."
    if before and share["low"] <= before["exact_match"]["high"]:
        return "The intervals overlap: whether training added anything, so few answers cannot tell."
    return "This shows that training works, not that the model understands."


def verdict(results: dict[str, Any]) -> list[str]:
    """Plain sentences about what this run measured; see the module's head."""
    lines = []
    before, tuned = _row(results, "trained", "before"), _row(results, "trained", "tuned")
    if tuned and tuned["exact_match"]["n"]:
        was = f" (before tuning: {percent(before['exact_match'])})" if before else ""
        lines.append(
            f"Memorisation: of {tuned['n']} trained questions the tuned model answers {percent(tuned['exact_match'])} "
            f"word for word{was}. {_memorised(tuned, before)}"
        )
    for name in ("paraphrase", "rephrased"):
        before, tuned, both = (_row(results, name, system) for system in ("before", "tuned", "both"))
        if tuned:
            was = f" (before: {before['f1']['value']:.2f})" if before else ""
            lines.append(
                f"{SET_NAMES[name].capitalize()}: the tuned model alone has the right fact in "
                f"{percent(tuned['fact'])} of {tuned['n']} answers, F1 {tuned['f1']['value']:.2f}{was}; training in "
                "carries over to new wordings only as far as these numbers say."
                + (f" With retrieval before it (both): {percent(both['fact'])}." if both else "")
            )
    unseen = _row(results, "unseen", "both")
    if unseen:
        lines.append(
            f"Facts of held-out documents: {percent(unseen['fact'])} right with retrieval; the model never saw them."
        )
    volatile = _row(results, "volatile", "retrieved")
    if volatile:
        source = f", {percent(volatile['right_source'])} from the right file" if volatile["right_source"]["n"] else ""
        lines.append(
            f"Volatile facts, looked up and quoted: {percent(volatile['fact'])} right{source}. None was trained in."
        )
    unanswerable = _row(results, "unanswerable", "both") or _row(results, "unanswerable", "tuned")
    if unanswerable:
        lines.append(
            f"Unanswerable questions: 'not found' in {percent(unanswerable['not_found'])} of {unanswerable['n']}; "
            "every other answer to them is an invention or a quotation beside the point."
        )
    bits = results.get("bits_per_byte")
    if bits and "before" in bits:
        change = bits["tuned"]["value"] - bits["before"]["value"]
        lines.append(
            f"Held-out company text: {bits['before']['value']:.3f} bits per byte before, "
            f"{bits['tuned']['value']:.3f} after ({change:+.3f}); lower is better."
        )
    if results.get("left_out_as_trained"):
        lines.append(
            f"{results['left_out_as_trained']} held-out questions were left out because their wording was trained."
        )
    return lines


def table_rows(results: dict[str, Any]) -> list[tuple[str, str, str, str, str, str, str]]:
    """Rows of (questions, system, n, exact match, F1, right fact, not found), as text, for page and terminal."""
    rows = []
    for r in results["table"]:
        f1 = f"{r['f1']['value']:.2f} [{r['f1']['low']:.2f}, {r['f1']['high']:.2f}]"
        answered = r["set"] != "unanswerable"
        rows.append(
            (
                SET_NAMES[r["set"]],
                SYSTEM_NAMES[r["system"]],
                str(r["n"]),
                percent(r["exact_match"]) if answered else "–",
                f1 if answered else "–",
                percent(r["fact"]) if answered else "–",
                percent(r["not_found"]),
            )
        )
    return sorted(rows, key=lambda row: list(SET_NAMES.values()).index(row[0]))


def bits_rows(results: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of (text, system, bytes, bits per byte, 95% interval), as text; none where no text was held out."""
    bits = results.get("bits_per_byte") or {}
    return [
        ("company text", system, f"{b['bytes']:,}", f"{b['value']:.3f}", f"[{b['low']:.3f}, {b['high']:.3f}]")
        for system in ("before", "tuned")
        if (b := bits.get(system))
    ]


# ---------------------------------------------------------------- pictures


def _svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes for the same drawing."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "luthier", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    """A figure without global state: safe in threads and in servers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_rates(results: dict[str, Any]) -> str:
    """Right facts by set and system, with intervals."""
    figure, axes = _axes(9, 3.4)
    names = [n for n in SET_NAMES if n != "unanswerable" and any(r["set"] == n for r in results["table"])]
    systems = [s for s in SYSTEM_NAMES if any(r["system"] == s for r in results["table"])]
    for i, system in enumerate(systems):
        for x, name in enumerate(names):
            row = _row(results, name, system)
            if row and row["fact"]["n"]:
                e, place = row["fact"], x + (i - (len(systems) - 1) / 2) * 0.2
                axes.bar(place, e["value"], 0.18, color=COLOURS[system], label=system if x == 0 else None)
                bounds = [[max(0.0, e["value"] - e["low"])], [max(0.0, e["high"] - e["value"])]]
                axes.errorbar(place, e["value"], yerr=bounds, color="#24211d", capsize=2, linewidth=1)
    axes.set_xticks(
        range(len(names)), [SET_NAMES[n].replace(", ", ",\n").replace(" (", "\n(") for n in names], fontsize=8
    )
    axes.set_ylim(0, 1)
    axes.set_ylabel("right fact in the answer")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    above = {"loc": "lower right", "bbox_to_anchor": (1, 1.02), "borderaxespad": 0}
    axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8, ncols=len(systems), **above)
    return _svg(figure)


def draw_losses(models: Sequence[Path]) -> str | None:
    """Training loss over steps, one panel a model that kept its metrics.jsonl."""
    from matplotlib.figure import Figure

    runs = [(m.name, list(read_jsonl(m / "metrics.jsonl"))) for m in models if (m / "metrics.jsonl").is_file()]
    runs = [(name, [r for r in rows if "loss" in r]) for name, rows in runs]
    runs = [(name, rows) for name, rows in runs if rows]
    if not runs:
        return None
    figure = Figure(figsize=(9, 3))
    for i, (name, rows) in enumerate(runs):
        axes = figure.add_subplot(1, len(runs), i + 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color="#9a4b1f", linewidth=1.2)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel("loss, nats a trained token", fontsize=8)
    figure.tight_layout()
    return _svg(figure)


def draw_map(vectors: Vectors, most: int = 120) -> str | None:
    """The commonest tokens on their two principal components; a name that would cover a commoner one's is left out."""
    from luthier.core.show.vectors import map_2d

    xy, labels = map_2d(vectors, most)
    if not len(labels):
        return None
    figure, axes = _axes(9, 5.5)
    axes.scatter(xy[:, 0], xy[:, 1], s=6, color="#3f6c8f")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.autoscale_view()  # or the boxes of names lie elsewhere
    taken = []
    for (x, y), label in zip(xy, labels, strict=True):
        name = axes.annotate(label, (x, y), fontsize=7, xytext=(2, 2), textcoords="offset points", parse_math=False)
        box = name.get_window_extent()
        if box.count_overlaps(taken):
            name.remove()
        else:
            taken.append(box)
    return _svg(figure)


def draw_tokens(model: Path, corpus: Path) -> tuple[str, str]:
    """Tokens by length in bytes and by rank, on the corpus; and a sentence about them."""
    import numpy as np
    from matplotlib.figure import Figure

    from luthier.core.data.corpus import read_corpus
    from luthier.tokenizers.formats import load_tokenizer

    tokenizer = load_tokenizer(model)
    texts = [d.text for d in read_corpus(corpus)]
    ids, _ = tokenizer.encode_batch(texts)
    counts = np.bincount(ids, minlength=tokenizer.vocab_size)
    lengths = np.array([len(t) for t in tokenizer.tokens])
    size = sum(len(t.encode()) for t in texts)
    figure = Figure(figsize=(9, 2.8))
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    longest = min(16, int(lengths.max()))
    left.bar(
        range(1, longest + 1),
        [counts[lengths == n].sum() / max(1, counts.sum()) for n in range(1, longest + 1)],
        color="#3f6c8f",
    )
    left.set_xlabel("bytes a token", fontsize=8)
    left.set_ylabel("share of the corpus", fontsize=8)
    ranked = np.sort(counts[counts > 0])[::-1]
    right.loglog(np.arange(1, len(ranked) + 1), ranked, color="#9a4b1f")
    right.set_xlabel("rank", fontsize=8)
    right.set_ylabel("times in the corpus", fontsize=8)
    figure.tight_layout()
    sentence = (
        f"{tokenizer.vocab_size:,} tokens in the vocabulary; the corpus of {size:,} bytes is {counts.sum():,} tokens, "
        f"{size / max(1, counts.sum()):.2f} bytes a token; {int((counts == 0).sum()):,} tokens never occur in it."
    )
    return _svg(figure), sentence


# ---------------------------------------------------------------- the page


def _figure(title: str, svg: str | None, caption: str) -> str:
    if svg is None:
        return ""
    return f"<h2>{html.escape(title)}</h2><figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>\n"


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first two columns are words and whose others are numbers, headers as their cells."""

    def line(cell: str, texts: Sequence[str]) -> str:
        number = (" class=number" if i > 1 else "" for i in range(len(texts)))
        return "".join(f"<{cell}{n}>{html.escape(text)}</{cell}>" for n, text in zip(number, texts, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{line("th", columns)}</tr></thead><tbody>{body}</tbody></table></div>\n'
    )


def _tables(results: dict[str, Any]) -> str:
    bits = bits_rows(results)
    return html_table(TABLE_COLUMNS, table_rows(results)) + (html_table(BITS_COLUMNS, bits) if bits else "")


def _samples(samples: Iterable[Sample]) -> str:
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.set, sample.system), []).append(sample)
    parts = []
    for (name, system), group in sorted(groups.items(), key=lambda item: list(SET_NAMES).index(item[0][0])):
        rows = "".join(
            f"<tr><td>{html.escape(s.question)}<br>"
            f"<small>expected: {html.escape(s.expected or 'not found')}</small></td>"
            f"<td>{html.escape(s.answer)}<br><small>{html.escape(_given_by(s))}</small></td>"
            f"<td class='{'yes' if _right(s) else 'no'}'>{'right' if _right(s) else 'wrong'}</td></tr>"
            for s in group
        )
        parts.append(
            f"<details><summary>{SET_NAMES[name]}, {system}: {len(group)} answers</summary><div class='scroll'><table>"
            f"<thead><tr><th>question</th><th>answer</th><th></th></tr></thead><tbody>{rows}</tbody></table></div></details>"
        )
    return "\n".join(parts)


def _right(sample: Sample) -> bool:
    if sample.set == "unanswerable":
        return bool(sample.not_found)
    return bool(sample.fact if sample.fact is not None else sample.exact_match)


def _given_by(sample: Sample) -> str:
    if sample.path == "retrieval":
        return f"quoted from {sample.source}, score {sample.score:.2f}"
    return "the model" if sample.path == "model" else "nothing found"


def write_report(
    path: Path,
    results: dict[str, Any],
    samples: Sequence[Sample],
    *,
    models: Sequence[Path],
    corpus: Path | None = None,
    vectors: Sequence[Path] = (),
) -> None:
    """Write the self-contained page; `models` are read for loss curves and token statistics."""
    from luthier.models.vectors import load_vectors

    models = [Path(m) for m in models]
    figures = _figure(
        "Right facts", draw_rates(results), "Share of answers that hold every expected fact, with 95% intervals."
    )
    figures += _figure("Loss curves", draw_losses(models), "Training loss as logged in each model's metrics.jsonl.")
    for folder in vectors:
        caption = f"The commonest tokens of {folder.name} {MAP_CAPTION}"
        figures += _figure(f"Map of the vectors: {folder.name}", draw_map(load_vectors(folder)), caption)
    if corpus is not None:
        svg, sentence = draw_tokens(models[-1], corpus)
        figures += _figure("Tokens", svg, sentence)
    template = Template(PAGE.read_text(encoding="utf-8"))
    page = template.substitute(
        title="Before and after: what the model learned",
        lead=html.escape("Models: " + ", ".join(f"{name} ({p})" for name, p in results["models"].items())),
        verdict="".join(f"<li>{html.escape(line)}</li>" for line in verdict(results)),
        table=_tables(results),
        figures=figures,
        samples=_samples(samples),
    )
    with atomic_open(path) as file:
        file.write(page)
