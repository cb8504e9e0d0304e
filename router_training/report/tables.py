"""The report's tables as HTML; every text from outside is escaped. Does not depend on charts or files."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from coe_server.routing.manifest import Manifest, ObjectiveEntry
from coe_server.system.visible import visible

LONGEST_PROMPT = 200

Evaluation = dict[str, Any]


def objectives_table(manifest: Manifest, evaluation: Evaluation) -> str:
    """Cost and gain of each objective, and whether it is served."""
    rows = {row["objective"]: row for row in evaluation["by_budget"]}
    lines = []
    for name, entry in manifest.objectives.items():
        row = rows.get(name, evaluation["router"] if entry.budget is None else None)
        lines.append(table_row(name, [*_figures(entry, row), _verdict(entry)]))
    heads = ("<objective", "budget", "spent", "score", "gain, 95 % interval", "<over", "<served")
    return table("Mean cost per prompt, score and gain on evaluation prompts; in points", heads, lines)


def heat_map(manifest: Manifest) -> str:
    """Score of each expert in each category; the darker, the better; the best of a category is framed."""
    experts = [expert.name for expert in manifest.experts]
    rows = {**{name: manifest.score[name] for name in manifest.categories}, "all categories": manifest.overall}
    every = [row[name].score for row in rows.values() for name in experts]
    low, spread = min(every), max(max(every) - min(every), 1e-9)
    lines = []
    for category, row in rows.items():
        best = max(row[name].score for name in experts)
        cells = [
            _heat_cell(
                f"{100 * row[name].score:.0f} <small>/ {row[name].prompts}</small>",
                (row[name].score - low) / spread,
                row[name].score == best,
            )
            for name in experts
        ]
        lines.append(f'<tr><th scope="row">{escape(category)}</th>{"".join(cells)}</tr>')
    caption = "Score in points, and its number of prompts; with few prompts it is shrunk towards the expert's mean"
    return _crossed("category, expert", caption, experts, lines)


def confusion_table(categories: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """The confusion matrix, in percent of the true category."""
    lines = []
    for category, row in zip(categories, shares, strict=True):
        if not any(row):
            continue
        cells = [_heat_cell(f"{100 * v:.0f}" if v >= 0.005 else "", v, best=False) for v in row]
        lines.append(f'<tr><th scope="row">{escape(category)}</th>{"".join(cells)}</tr>')
    caption = "Percent of the prompts of a category (row) that were classified as each category (column)"
    return _crossed("true, predicted", caption, categories, lines)


def worst_prompts_table(prompts: Iterable[dict[str, Any]]) -> str:
    """Prompts with a high expected and a low actual score, on which another expert scored higher."""
    lines = []
    for one in prompts:
        text = cut(one["text"]) if "text" in one else f"prompt {one['prompt_id']}"
        went = f"{one['expert']}, {100 * one['score']:.0f} of {100 * one['expected_score']:.0f} expected"
        better = f"{one['better_expert']}, {100 * one['better_score']:.0f}"
        cells = (_taken_for(one), went, better)
        wrapped = "".join(f'<td class="wrapped">{escape(cell)}</td>' for cell in cells)
        lines.append(f'<tr><td class="prompt">{escape(text)}</td>{wrapped}</tr>')
    return table("Scores in points", ("<prompt", "<category", "<routed to", "<better"), lines)


def _taken_for(prompt: dict[str, Any]) -> str:
    true, predicted = prompt["category"], prompt["predicted"]
    return predicted if true in {None, predicted} else f"{true}, taken for {predicted}"


def robustness_table(robustness: dict[str, Any]) -> str:
    """The effect of slight changes of a prompt on its expert and score."""
    names = {
        "typos": "typing errors",
        "case": "capitals",
        "reworded": "another word order",
        "filler": "politeness",
        "fences": "fences and quotation marks",
        "preamble": "a role before it",
        "foreign": "greeting and thanks in another language",
    }
    lines = [
        table_row(
            names.get(name, name),
            [f"{row['flips']:.1%}", f"{row['harmful_flips']:.1%}", f"{100 * row['score_change']:+.2f}"],
        )
        for name, row in robustness.items()
        if isinstance(row, dict)
    ]
    caption = f"{robustness['n_prompts']} prompts, each changed in {len(robustness) - 1} ways"
    return table(caption, ("<change", "another expert", "and a lower score", "mean score, points"), lines)


def definition_list(facts: Iterable[tuple[str, str]]) -> str:
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts]
    return f"<dl>{''.join(lines)}</dl>"


def cut(text: str) -> str:
    """One line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_PROMPT else line[: LONGEST_PROMPT - 1] + "…"


def _figures(entry: ObjectiveEntry, row: Evaluation | None) -> list[str]:
    budget = "none" if entry.budget is None else f"{entry.budget:.4g}"
    if row is None:
        return [budget, "-", "-", "-", _text("not measured")]
    low, high = row["gain_ci95"]
    gain = f"{100 * row['gain']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
    over = "best single expert" if entry.budget is None else "mixing experts at random"
    return [budget, f"{row['mean_active_params_b']:.4g}", f"{100 * row['score']:.2f}", gain, _text(over)]


def _text(words: str) -> str:
    return f'<td class="text">{escape(words)}</td>'


def _verdict(entry: ObjectiveEntry) -> str:
    mark = "" if entry.measured else ", not measured since it was solved again"
    if entry.shipped and entry.forced is not None:
        return f'<td class="reason">forced, not earned: {escape(entry.forced)}{mark}</td>'
    if entry.shipped:
        return f'<td class="reason"><span class="yes">yes</span>{mark}</td>'
    return f'<td class="reason"><span class="no">no</span>: {escape(entry.refusal or "")}{mark}</td>'


def _heat_cell(content: str, value: float, best: bool) -> str:
    kind = ' class="best"' if best else ""
    return f'<td{kind} style="--v: {value:.2f}">{content}</td>'


def table_row(name: str, cells: Iterable[str]) -> str:
    """A row of `table`; cells that begin with <td are HTML already."""
    plain = "".join(cell if cell.startswith("<td") else f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(name)}</th>{plain}</tr>'


def table(caption: str, heads: Sequence[str], lines: Iterable[str]) -> str:
    """A header row; names that begin with < are over text columns."""
    head = "".join(
        f'<th scope="col"{" class=text" if name.startswith("<") else ""}>{escape(name.removeprefix("<"))}</th>'
        for name in heads
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return _titled(caption, f"<table>{body}</table>")


def _crossed(corner: str, caption: str, columns: Iterable[str], lines: Iterable[str]) -> str:
    """A table of coloured cells with vertical column names."""
    heads = "".join(f'<th scope="col" class="up">{escape(name)}</th>' for name in columns)
    head = f'<thead><tr><th scope="col" class="text">{escape(corner)}</th>{heads}</tr></thead>'
    return _titled(caption, f'<table class="heat">{head}<tbody>{"".join(lines)}</tbody></table>')


def _titled(caption: str, table: str) -> str:
    """A table with its caption outside of the scrolled area."""
    named = table.replace("<table", f'<table aria-label="{escape(caption)}"', 1)
    return f'<p class="muted">{escape(caption)}</p><div class="scroll">{named}</div>'


def escape(text: str) -> str:
    """Escaped text without markup and without bidirectional control characters."""
    return html.escape(visible(text))
