"""The page and its style: from an artifact's manifest and evaluation to `report.html`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from coe_server.errors import ArtifactError
from coe_server.routing import artifact as artifacts
from coe_server.routing import artifact_checks
from coe_server.routing.artifact import Artifact
from router_training.data.dataset import Dataset
from router_training.evaluation.worth import worth_sentence
from router_training.report import charts, tables
from router_training.report.handover import handover_section
from router_training.report.tables import escape

REPORT = "report.html"
NEEDED = {"router", "curve", "confusion", "reliability"}  # keys missing from the earliest evaluations

Evaluation = dict[str, Any]


class NothingToReport(ArtifactError):
    """An artifact without an evaluation, or with one of an earlier version."""


def write_report(folder: Path) -> Path:
    """Write the report of the artifact in `folder` into the folder.

    Raises ArtifactError if the artifact is damaged, NothingToReport without an evaluation.
    """
    artifact = artifacts.load(folder)
    evaluation = artifact_checks.read_evaluation(folder, artifact.manifest)
    if evaluation is None or not set(evaluation) >= NEEDED:
        raise NothingToReport(f"{folder} has no evaluation to report on; `coe-train fit` writes one")
    path, text = folder / REPORT, page(artifact, evaluation)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{REPORT}.") as workplace:
        draft = Path(workplace) / REPORT
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(path)
    return path


def with_texts(evaluation: Evaluation, dataset: Dataset) -> Evaluation:
    """The evaluation with the beginning of each of the worst prompts."""
    text_of = {
        name: conversation.turns[-1].text
        for name, conversation in zip(dataset.prompt_ids, dataset.conversations, strict=True)
    }
    worst = [{**one, "text": tables.cut(text_of[one["prompt_id"]])} for one in evaluation["worst_prompts"]]
    return {**evaluation, "worst_prompts": worst}


def page(artifact: Artifact, evaluation: Evaluation) -> str:
    """The whole page; it loads no other resources."""
    body = "\n".join(
        [
            _headline(artifact, evaluation),
            _quality(artifact, evaluation),
            _outside(evaluation),
            _categories(artifact, evaluation),
            _confidence(evaluation),
            handover_section(artifact.manifest, evaluation),
            _robustness(evaluation),
            _worst(evaluation),
            _card(artifact, evaluation),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Router report</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _headline(artifact: Artifact, evaluation: Evaluation) -> str:
    router, best = evaluation["router"], evaluation["best_single"]
    low, high = router["gain_ci95"]
    better = "better than" if low > 0 else "worse than" if high < 0 else "not certainly better than"
    served = [name for name, entry in artifact.manifest.objectives.items() if entry.shipped]
    outside = evaluation["leave_group_out"]
    cards = [
        (f"{100 * router['score']:.1f}", "points, the router"),
        (f"{100 * best['score']:.1f}", f"points, always {best['expert']}"),
        (f"{100 * router['gain']:+.2f}", f"points gained ({100 * low:+.2f} to {100 * high:+.2f})"),
        (f"{100 * outside['gain']:+.2f}" if outside else "-", "points on groups left out of training"),
    ]
    boxes = "".join(f'<div class="card"><b>{escape(b)}</b><span>{escape(text)}</span></div>' for b, text in cards)
    sentence = worth_sentence(evaluation)
    worth = f"<p><b>{escape(sentence)}.</b></p>" if sentence else ""
    solved = evaluation.get("re_solved")
    note = ""
    if solved and not solved["measured"]:
        note = (
            "<p class=no>The mapping has been solved again since;"
            f" the figures are those of router {escape(solved['from'])}.</p>"
        )
    return (
        f"<h1>This router is {better} always asking {escape(best['expert'])}</h1>"
        f"{worth}<p>Measured on {evaluation['n_prompts']:,} prompts."
        f" Served: {escape(', '.join(served)) or 'nothing'}.</p>"
        f'{note}<div class="cards">{boxes}</div>{tables.objectives_table(artifact.manifest, evaluation)}'
    )


def _quality(artifact: Artifact, evaluation: Evaluation) -> str:
    spent = "active parameters" if artifact.manifest.cost_unit == "active_params_b" else "price"
    return (
        f"<h2>Quality against {spent}</h2>"
        "<p>The zero router mixes single experts at random; a router gains where its line is above. The"
        " oracle always takes the best expert of a prompt.</p>"
        + _figure(
            charts.quality_against_cost(artifact.manifest, evaluation),
            f"Area between the router's line and the zero router's: {100 * evaluation['delta_aiq']:+.2f} points on"
            f" average (AIQ {100 * evaluation['aiq']:.2f}). Oracle: {100 * evaluation['oracle']:.1f} points.",
            wide=True,
        )
    )


def _outside(evaluation: Evaluation) -> str:
    outside = evaluation["leave_group_out"]
    if outside is None:
        return ""
    return (
        "<h2>On prompts unlike its training data</h2>"
        "<p>Each group was left out of training in turn. Below zero, routing lowers the score of such prompts.</p>"
        + _figure(charts.leave_group_out_bars(outside), "Gain over the best single expert by group left out", wide=True)
    )


def _categories(artifact: Artifact, evaluation: Evaluation) -> str:
    manifest = artifact.manifest
    confusion = ""
    if any(any(row) for row in evaluation["confusion"]):
        confusion = "<h2>Confused categories</h2>"
        confusion += tables.confusion_table(manifest.categories, evaluation["confusion"])
    return f"<h2>Scores by category</h2>{tables.heat_map(manifest)}{confusion}"


def _confidence(evaluation: Evaluation) -> str:
    calibration, bins = evaluation["calibration"], evaluation["reliability"]
    reliability = ""
    if calibration["ece"] is not None and bins:
        caption = (
            f"Hit rate against confidence. Mean error {100 * calibration['ece']:.1f} points"
            f" (dashed: none), {100 * calibration['ece_before']:.1f} before calibration;"
            f" Brier score {calibration['brier']:.3f}, {calibration['brier_before']:.3f} before"
        )
        reliability = _figure(charts.reliability_curve(bins), caption)
    coverage = _figure(
        charts.risk_coverage_curve(evaluation),
        "Mean score of the most confident prompts; dashed: always the best single expert",
    )
    return f'<h2>Confidence</h2><div class="pair">{reliability}{coverage}</div>'


def _robustness(evaluation: Evaluation) -> str:
    if "robustness" not in evaluation:
        return ""
    return "<h2>Small changes of a prompt</h2>" + tables.robustness_table(evaluation["robustness"])


def _worst(evaluation: Evaluation) -> str:
    prompts = evaluation.get("worst_prompts", [])
    if not prompts:
        return ""
    return (
        "<h2>Worst prompts</h2>"
        "<p>Prompts with a high expected and a low actual score, on which another expert scored higher.</p>"
        + tables.worst_prompts_table(prompts)
    )


def _card(artifact: Artifact, evaluation: Evaluation) -> str:
    manifest = artifact.manifest
    sizes = ", ".join(f"{e.name} {e.active_params_b or e.price_per_million_tokens:g}" for e in manifest.experts)
    facts = [
        ("router version", artifact.version),
        ("evaluated on", f"{evaluation.get('date', 'an unknown date')}, {evaluation['n_prompts']:,} prompts"),
        (
            "trained on",
            f"{manifest.prompts:,} prompts, including the held-out ones after evaluation; data {manifest.data_hash}",
        ),
        ("categories", f"{len(manifest.categories)}: {', '.join(manifest.categories)}"),
        ("experts", f"{sizes} ({charts.cost_label(manifest).removeprefix('mean ').removesuffix(' per prompt')})"),
        ("decision", f"{manifest.mode} mapping, {evaluation['routing_ms']['p50']:.2f} ms at the median"),
        ("seed", str(manifest.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
    ]
    return f"<h2>Model card</h2>{tables.definition_list(facts)}"


def _figure(svg: str, caption: str, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f'<figure{kind}><div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


STYLE = """
:root { color-scheme: light dark; --surface: #fbfbf9; --card: #ffffff; --ink: #1c1d20; --muted: #5d6067;
  --grid: #dedfdc; --router: #1f66d1; --bad: #c2571a; --good: #1f7f4c; }
@media (prefers-color-scheme: dark) { :root { --surface: #141518; --card: #1c1e22; --ink: #ececee; --muted: #a3a7b0;
  --grid: #35383f; --router: #72a8ff; --bad: #f29a5c; --good: #63c993; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--surface); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.muted, figcaption { color: var(--muted); font-size: .9rem; text-align: left; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: .85rem; }
figure { margin: .6rem 0; background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; }
figure { padding: .8rem; }
figcaption { margin-top: .4rem; }
svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
svg text { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
.wide svg { min-width: 36rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .8rem; }
/* what is wider than the screen has a shadow at the edge behind which it goes on */
.scroll { overflow-x: auto; margin: .6rem 0; --back: var(--surface);
  background: linear-gradient(to left, var(--back) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, color-mix(in srgb, var(--ink) 30%, transparent), transparent)
      right / 1rem 100% no-repeat; }
figure .scroll { --back: var(--card); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; } th[scope=row] { position: sticky; left: 0; background: var(--surface); }
th[scope=row], th.text, td.text { text-align: left; }
td.prompt { white-space: normal; min-width: 18rem; text-align: left; overflow-wrap: anywhere; }
td.wrapped { white-space: normal; text-align: left; min-width: 8rem; }
td.reason { white-space: normal; min-width: 14rem; text-align: left; }
.heat td { border: 1px solid var(--card); text-align: center; min-width: 3.2rem;
  background: color-mix(in srgb, var(--router) calc(var(--v) * 62%), var(--card)); }
.heat td.best { font-weight: 700; outline: 2px solid var(--ink); outline-offset: -2px; }
.heat thead th.up { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .5rem .2rem;
  max-height: 12rem; }
.heat small { color: inherit; opacity: .8; font-weight: 400; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .25rem 1rem; font-size: .9rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { main { padding: 1rem .8rem 3rem; } h1 { font-size: 1.3rem; }
  th[scope=row] { white-space: normal; min-width: 7rem; max-width: 45vw; overflow-wrap: break-word; }
  figure { padding: .5rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { body { background: none; } .card, figure, tr { break-inside: avoid; } }
"""
