"""The report's charts, as inline SVG with labels that do not overlap. The page's style gives the colour names values.

Does not depend on files or tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from coe_server.routing.manifest import Manifest
from coe_server.system.visible import visible
from router_training.report.tables import escape

# placeholders, replaced by the style's colours of these names in the SVG
COLOURS = {
    "ink": "#010101",
    "muted": "#010102",
    "grid": "#010103",
    "router": "#010104",
    "bad": "#010105",
    "good": "#010106",
}
INK, MUTED, GRID, ROUTER, BAD, GOOD = COLOURS.values()
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read by screen readers, searched and scaled
    "svg.hashsalt": "coe",
    "text.parse_math": False,  # names are data: a group may be called "$5 and $6"
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}

Evaluation = dict[str, Any]


def quality_against_cost(manifest: Manifest, evaluation: Evaluation) -> str:
    """Experts, the zero router, the router's curve with its objectives, and the oracle."""
    with rc_context(SETTINGS):
        figure, axes = _figure(8.6, 5.0)
        costs = dict(zip((expert.name for expert in manifest.experts), manifest.costs(), strict=True))
        experts = [(costs[name], 100 * score, name) for name, score in evaluation["experts"].items()]
        hull, curve = evaluation["hull"], evaluation["curve"]
        axes.axhline(100 * evaluation["oracle"], color=GOOD, linestyle=(0, (1, 2)), linewidth=1.5, label="oracle")
        axes.plot(
            *_points([*hull, _to_the_right(hull[-1], costs)]), color=MUTED, linestyle=(0, (5, 3)), label="zero router"
        )
        axes.plot(*_points(curve), color=ROUTER, linewidth=2.2, label="router, every budget")
        axes.scatter([c for c, _, _ in experts], [s for _, s, _ in experts], s=36, color=INK, zorder=3, label="expert")
        chosen = _chosen(manifest, evaluation)
        axes.scatter(
            [c for c, _, _ in chosen],
            [s for _, s, _ in chosen],
            s=64,
            color=ROUTER,
            marker="D",
            zorder=4,
            label="objective",
        )
        axes.set_xlabel(cost_label(manifest))
        axes.set_ylabel("mean score, points")
        axes.set_xlim(0, max(costs.values()) * 1.06)
        axes.margins(y=0.08)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=10)
        names = [(*point, ROUTER) for point in chosen] + [(*point, INK) for point in experts]
        _draw_labels(figure, axes, names, [_points(hull), _points(curve)])
        return _svg(figure, "Mean score against mean cost: experts, zero router, router and oracle")


def leave_group_out_bars(outside: Evaluation) -> str:
    """The gain over the best single expert in every group left out of training, and over all of them."""
    with rc_context(SETTINGS):
        intervals = outside.get("per_group_ci95", {})
        bars = sorted(outside["per_group"].items(), key=lambda item: item[1])
        rows = [(name or "no group", gain, intervals.get(name)) for name, gain in bars]
        rows.append(("all groups", outside["gain"], outside["gain_ci95"]))
        figure, axes = _figure(8.6, 0.8 + 0.27 * len(rows))
        axes.grid(visible=False, axis="y")
        axes.axvline(0.0, color=MUTED, linewidth=1)
        for place, (_, gain, interval) in enumerate(rows):
            axes.barh(place, 100 * gain, height=0.62, color=ROUTER if gain >= 0.0 else BAD)
            if interval is not None:
                axes.plot(
                    [100 * end for end in interval], [place, place], color=INK, linewidth=1.4, solid_capstyle="butt"
                )
        axes.set_yticks(range(len(rows)), [_short(name) for name, _, _ in rows], color=INK)
        axes.set_xlabel("gain over the best single expert, points; line: 95 % interval")
        return _svg(
            figure, "Gain on groups left out of training: " + ", ".join(f"{n} {100 * g:+.1f}" for n, g, _ in rows)
        )


def reliability_curve(bins: Sequence[dict[str, float]]) -> str:
    """The hit rate of the likeliest category against the router's confidence."""
    with rc_context(SETTINGS):
        figure, axes = _figure(4.6, 3.6)
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (5, 3)), linewidth=1.2)
        axes.plot(
            [one["confidence"] for one in bins], [one["accuracy"] for one in bins], "o-", color=ROUTER, markersize=5
        )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share right")
        return _svg(figure, "Reliability: share of right categories against confidence; the dashed line is perfect")


def risk_coverage_curve(evaluation: Evaluation) -> str:
    """The mean score if only the most confident prompts are routed."""
    with rc_context(SETTINGS):
        figure, axes = _figure(4.6, 3.6)
        curve = evaluation["risk_coverage"]
        axes.plot(
            [one["coverage"] for one in curve], [100 * one["score"] for one in curve], color=ROUTER, linewidth=2.2
        )
        axes.axhline(100 * evaluation["best_single"]["score"], color=MUTED, linestyle=(0, (5, 3)), linewidth=1.2)
        axes.set(xlim=(0, 1.02), xlabel="share of prompts, most confident first", ylabel="mean score, points")
        return _svg(figure, "Mean score of the most confident prompts against their share")


def cost_label(manifest: Manifest) -> str:
    if manifest.cost_unit == "active_params_b":
        return "mean active parameters per prompt, billions"
    return "mean price per million tokens"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.tick_params(length=0)
    return figure, axes


def _points(corners: Sequence[dict[str, float]]) -> tuple[list[float], list[float]]:
    return [one["mean_active_params_b"] for one in corners], [100 * one["score"] for one in corners]


def _to_the_right(corner: dict[str, float], costs: dict[str, float]) -> dict[str, float]:
    """The curve extended to the right edge: a hull is flat beyond its last corner."""
    return {**corner, "mean_active_params_b": max(costs.values())}


def _chosen(manifest: Manifest, evaluation: Evaluation) -> list[tuple[float, float, str]]:
    """Cost, score and name of each objective that is measured in the chart's unit."""
    main = evaluation["router"]
    rows = [(main["mean_active_params_b"], 100 * main["score"], main["objective"])]
    for row in evaluation["by_budget"]:
        if row.get("cost_unit", manifest.cost_unit) == manifest.cost_unit and row["objective"] != main["objective"]:
            rows.append((row["mean_active_params_b"], 100 * row["score"], row["objective"]))
    return rows


def _draw_labels(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    lines: Sequence[tuple[list[float], list[float]]],
) -> None:
    """A name at every point that covers no other name or line, with a leader line if it is not beside the point."""
    figure.draw_without_rendering()  # positions are known only after drawing
    there = [tuple(map(float, axes.transData.transform((x, y)))) for x, y, _, _ in points]
    box = axes.get_window_extent()
    names = [Label(x, y, _short(name)) for (x, y), (_, _, name, _) in zip(there, points, strict=True)]
    on_lines = [
        spot for xs, ys in lines for spot in along(axes.transData.transform(np.column_stack((xs, ys))).tolist())
    ]
    for (x, y, name, colour), (dx, dy) in zip(points, placed(names, (box.x0, box.x1), on_lines), strict=True):
        near = 0.0 if dx > 0.0 else 0.5 if dy > 0.0 or dx > -GAP - 1.0 else 1.0
        leader = {
            "arrowstyle": "-",
            "color": MUTED,
            "linewidth": 0.6,
            "shrinkA": 0,
            "shrinkB": 4,
            "relpos": (near, 0.5),
        }
        axes.annotate(
            _short(name),
            (x, y),
            (dx, dy),
            textcoords="offset pixels",
            color=colour,
            fontsize=10,
            va="center",
            arrowprops=leader if dy else None,
        )


def _short(name: str) -> str:
    name = visible(name)
    return name if len(name) <= 28 else name[:27] + "…"


def _svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element that fills its place and takes its colours from the page."""
    text = StringIO()
    with catch_warnings():
        # matplotlib measures with its own font; browsers have fonts for every script
        filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"|(<svg [^>]*?)height="[\d.]+pt"', r"\1\2", svg, count=1
    )
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)


SPACING = 6.0
CHARACTER, LINE, GAP = 5.9, 13.0, 8.0  # pixels of the charts' font, rounded up


@dataclass(frozen=True, slots=True)
class Label:
    """A name and the point that it belongs to."""

    x: float
    y: float
    text: str

    @property
    def width(self) -> float:
        return CHARACTER * len(self.text)


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    right: float
    bottom: float
    top: float

    def overlap(self, other: _Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(high, 0.0)


def placed(
    labels: Sequence[Label], sides: tuple[float, float], kept_free: Sequence[tuple[float, float]] = ()
) -> list[tuple[float, float]]:
    """Offset of each name's left middle from its point: the first free place around it, else the least crowded.

    `sides` are left and right end of the chart, `kept_free` further spots that names should not cover.
    """
    taken = [_Box(one.x - 5, one.x + 5, one.y - 5, one.y + 5) for one in labels]
    taken += [_Box(x - 2, x + 2, y - 2, y + 2) for x, y in kept_free]
    offsets = []
    for label in labels:
        places = [_box(label, dx, dy) for dx, dy in _around(label)]
        crowding = [_crowding(box, taken, sides) for box in places]
        best = crowding.index(min(crowding))
        taken.append(places[best])
        offsets.append(_around(label)[best])
    return offsets


def along(corners: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Spots on the line through these corners, one every few pixels."""
    spots = []
    for (x, y), (to_x, to_y) in pairwise(corners):
        steps = max(int(max(abs(to_x - x), abs(to_y - y)) / SPACING), 1)
        spots += [(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for step in range(steps + 1)]
    return spots


def _around(label: Label) -> list[tuple[float, float]]:
    beside, before, centred = GAP, -GAP - label.width, -label.width / 2
    rows = [(0.0, (beside, before)), (LINE, (centred, beside, before)), (-LINE, (centred, beside, before))]
    rows += [(1.6 * LINE, (beside, before)), (-1.6 * LINE, (beside, before))]
    rows += [(2 * LINE, (centred, beside, before)), (-2 * LINE, (centred, beside, before))]
    return [(dx, dy) for dy, columns in rows for dx in columns]


def _box(label: Label, dx: float, dy: float) -> _Box:
    left, middle = label.x + dx, label.y + dy
    return _Box(left, left + label.width, middle - LINE / 2, middle + LINE / 2)


def _crowding(box: _Box, taken: Sequence[_Box], sides: tuple[float, float]) -> float:
    outside = max(sides[0] - box.left, 0.0) + max(box.right - sides[1], 0.0)
    return sum(box.overlap(other) for other in taken) + LINE * outside
