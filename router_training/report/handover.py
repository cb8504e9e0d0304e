"""The report's section on experts that hand over: how well they know themselves, and what each objective gains."""

from __future__ import annotations

from typing import Any

from coe_server.routing.certainty import WHOLE
from coe_server.routing.manifest import CurveEntry, HandoverEntry, Manifest
from router_training.report.tables import escape, table, table_row


def handover_section(manifest: Manifest, evaluation: dict[str, Any]) -> str:
    """Empty without recorded log-probabilities."""
    if manifest.certainty is None:
        return ""
    return (
        "<h2>What an expert's own tokens say</h2>"
        "<p>The probability that an answer is right, from the mean log-probability of its first tokens: AUROC (0.5: a"
        " coin, 1: always told apart) and calibration error on prompts that the curve was not fitted on.</p>"
        + _certainty_table(manifest.certainty)
        + "<p>An answer that is less likely right than the next expert's is handed over to that expert. The gain is"
        " measured over the same router without handover at the same mean cost, abandoned tokens included.</p>"
        + _objectives_table(manifest, evaluation)
    )


def _certainty_table(certainty: dict[str, list[CurveEntry]]) -> str:
    lengths = sorted({curve.tokens for curves in certainty.values() for curve in curves}, key=lambda k: (k == WHOLE, k))
    lines = []
    for name, curves in certainty.items():
        found = {curve.tokens: curve for curve in curves}
        lines.append(table_row(name, [_cell(found.get(tokens)) for tokens in lengths]))
    heads = ["whole answer" if tokens == WHOLE else f"first {tokens}" for tokens in lengths]
    return table("AUROC / calibration error, by number of tokens", ("<expert", *heads), lines)


def _cell(curve: CurveEntry | None) -> str:
    if curve is None or curve.calibration_error is None:
        return "-"
    auroc = "-" if curve.auroc is None else f"{curve.auroc:.3f}"
    return f"{auroc} / {curve.calibration_error:.3f}"


def _objectives_table(manifest: Manifest, evaluation: dict[str, Any]) -> str:
    measured = {one["objective"]: one for one in evaluation.get("handover", ())}
    lines = []
    for name, entry in manifest.objectives.items():
        if entry.handover is not None:
            lines.append(table_row(name, _figures(entry.handover, measured.get(name))))
    heads = (
        "<objective",
        "tokens",
        "handed over",
        "gain on folds",
        "gain on held-out",
        "gain without group",
        "<served",
    )
    return table("Gain at equal mean cost in points, with 95 % intervals", heads, lines)


def _figures(handover: HandoverEntry, found: dict[str, Any] | None) -> list[str]:
    low, high = handover.gain_ci95
    inside = _gain({"gain": handover.gain, "gain_ci95": [low, high]})
    verdict = '<span class="yes">yes</span>' if handover.shipped else '<span class="no">no</span>: '
    return [
        "all" if handover.tokens == WHOLE else str(handover.tokens),
        f"{handover.share:.1%}",
        inside,
        _gain(found),
        _gain((found or {}).get("leave_group_out")),
        f'<td class="reason">{verdict}{escape(handover.refusal or "")}</td>',
    ]


def _gain(found: dict[str, Any] | None) -> str:
    if not found:
        return "-"
    low, high = found["gain_ci95"]
    return f"{100 * found['gain']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
