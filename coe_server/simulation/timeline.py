"""Pure: draws a simulated trace as SVG: moves, time on the device, answers and waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from math import floor, log10

from coe_server.cache.tiers import Tier
from coe_server.simulation.simulator import Run, TimedMove

_WIDTH, _LEFT, _RIGHT, _TOP = 1200, 130, 30, 64
_ROW, _WAITS = 22, 150  # pixels: one expert, the panel of waits
_MOST_ROWS = 40
_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#997700",
    "#44aa99",
    "#882255",
    "#555555",
)


def draw_timeline(run: Run, title: str) -> str:
    """One row per expert (the 40 most requested), time from left to right.

    Pale: moving to or from the device. Colour: on the device. Dark line: generating. Below, one dot per request: its
    arrival and its wait.
    """
    asked = Counter(answer.expert for answer in run.answers)
    names = sorted(name for name, _ in asked.most_common(_MOST_ROWS))
    return _Picture(run, names, len(asked) - len(names)).draw(title)


class _Picture:
    def __init__(self, run: Run, names: Sequence[str], left_out: int) -> None:
        self._run = run
        self._names = names
        self._left_out = left_out
        self._colours = {name: _COLOURS[position % len(_COLOURS)] for position, name in enumerate(names)}
        self._end = max([answer.finished for answer in run.answers] + [1.0])
        self._bottom = _TOP + _ROW * len(names)

    def draw(self, title: str) -> str:
        height = self._bottom + _WAITS + 74
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="{_LEFT}" y="24" font-size="16">{escape(title)}</text>',
            *self._legend(),
            *self._seconds(),
            *(part for row, name in enumerate(self._names) for part in self._expert(name, _TOP + row * _ROW)),
            *self._waits(self._bottom + 34),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _legend(self) -> Iterator[str]:
        more = f"; {self._left_out} less requested experts are left out" if self._left_out else ""
        yield f'<text x="{_LEFT}" y="44" fill="#666">pale: moving to or from the device; colour: on the device; '
        yield f"black line: generating{more}</text>"

    def _seconds(self) -> Iterator[str]:
        step = _round_step(self._end / 10)
        for tick in range(floor(self._end / step) + 1):
            x = self._x(tick * step)
            bottom = self._bottom + 34 + _WAITS
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="#e4e4e4"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick * step:g} s</text>'

    def _expert(self, name: str, y: float) -> Iterator[str]:
        yield f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
        colour = self._colours[name]
        for move in self._run.moves:
            touches_device = Tier.DEVICE in (move.source, move.target)
            if move.expert == name and touches_device and move.ended > 0:  # otherwise preloaded
                yield self._bar(move.began, move.ended, y + 3, 16, f'fill="{colour}" opacity="0.35"')
        for begins, ends in _stays([move for move in self._run.moves if move.expert == name], self._end):
            yield self._bar(begins, ends, y + 3, 16, f'fill="{colour}"')
        for begins, ends in self._generating(name):
            yield self._bar(begins, ends, y + 9, 4, 'fill="#000" opacity="0.75"')

    def _generating(self, name: str) -> list[tuple[float, float]]:
        joined: list[tuple[float, float]] = []
        for answer in sorted(self._run.answers, key=lambda answer: answer.granted):
            if answer.expert != name:
                continue
            if joined and answer.granted <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], answer.finished))
            else:
                joined.append((answer.granted, answer.finished))
        return joined

    def _waits(self, y: float) -> Iterator[str]:
        longest = max([answer.waited for answer in self._run.answers] + [1.0])
        step = _round_step(longest / 3)
        yield f'<text x="{_LEFT - 8}" y="{y - 8}" text-anchor="end" fill="#666">waited</text>'
        for tick in range(floor(longest / step) + 1):
            height = y + _WAITS - tick * step / longest * _WAITS
            yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="#e4e4e4"/>'
            yield f'<text x="{_LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{tick * step:g} s</text>'
        for answer in self._run.answers:
            height = y + _WAITS - answer.waited / longest * _WAITS
            colour = self._colours.get(answer.expert, "#bbbbbb")
            yield f'<circle cx="{self._x(answer.arrived):.1f}" cy="{height:.1f}" r="2.5" fill="{colour}"/>'

    def _bar(self, begins: float, ends: float, y: float, height: float, style: str) -> str:
        x, width = self._x(begins), max(self._x(ends) - self._x(begins), 0.4)
        return f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" {style}/>'

    def _x(self, seconds: float) -> float:
        return _LEFT + min(seconds, self._end) / self._end * (_WIDTH - _LEFT - _RIGHT)


def _stays(moves: Sequence[TimedMove], end: float) -> Iterator[tuple[float, float]]:
    """The intervals in which one expert was on the device."""
    came: float | None = None
    for move in moves:
        if move.target is Tier.DEVICE:
            came = move.ended
        elif move.source is Tier.DEVICE and came is not None:
            yield came, move.began
            came = None
    if came is not None and came < end:
        yield came, end


def _round_step(about: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (or 0.1, 0.2, ...) that is not below `about`."""
    power = 10.0 ** floor(log10(about))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about * (1 - 1e-9))
