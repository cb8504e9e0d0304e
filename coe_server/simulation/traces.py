"""Pure: what a trace of requests is, and how it is read from JSON lines.

Pure: made-up traffic of known shapes, the same for the same seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from random import Random
from typing import Any, Literal, get_args

from coe_server.cache.queue import Priority
from coe_server.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace: for `expert`, or for the best of `scores`."""

    arrival_seconds: float
    output_tokens: int
    expert: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int | None = None
    priority: Priority = "normal"
    fan_out: int = 1  # answers it asks for at once

    @property
    def best(self) -> str:
        """Where it goes if nothing but quality counts; of equal scores the first name."""
        return self.expert if self.expert is not None else min(self.scores, key=lambda name: (-self.scores[name], name))


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    name: str
    requests: tuple[Request, ...]

    @property
    def experts(self) -> tuple[str, ...]:
        """Every expert that a request names or scores, sorted."""
        named = {request.expert for request in self.requests if request.expert is not None}
        return tuple(sorted(named.union(*(request.scores for request in self.requests))))


def read_trace(name: str, lines: Iterable[str]) -> Trace:
    """A trace from JSON lines; `name` is used in messages. Raises DatasetError with the number of the wrong line."""
    requests = [_request(f"{name}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise DatasetError(f"{name}: holds no request")
    return Trace(name, tuple(sorted(requests, key=lambda request: request.arrival_seconds)))


def write_trace(trace: Trace) -> Iterable[str]:
    """The JSON lines that `read_trace` reads."""
    for request in trace.requests:
        fields: dict[str, Any] = {"arrival_seconds": request.arrival_seconds, "output_tokens": request.output_tokens}
        fields |= {"expert": request.expert} if request.expert is not None else {"scores": dict(request.scores)}
        if request.prompt_tokens is not None:
            fields["prompt_tokens"] = request.prompt_tokens
        if request.fan_out > 1:
            fields["fan_out"] = request.fan_out
        yield json.dumps(fields | {"priority": request.priority})


def _request(where: str, line: str) -> Request:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{where}: is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise DatasetError(f"{where}: must be an object with arrival_seconds, output_tokens and expert or scores")
    if unknown := sorted(fields.keys() - _KEYS):
        raise DatasetError(f"{where}: '{unknown[0]}' is not one of {', '.join(sorted(_KEYS))}")
    expert, scores = fields.get("expert"), fields.get("scores")
    if (expert is None) == (scores is None):
        raise DatasetError(f"{where}: needs either 'expert' or 'scores'")
    priority = fields.get("priority", "normal")
    if priority not in get_args(Priority):
        raise DatasetError(f"{where}: priority {priority!r} is not one of {', '.join(get_args(Priority))}")
    return Request(
        arrival_seconds=_number(where, fields, "arrival_seconds"),
        output_tokens=int(_number(where, fields, "output_tokens")),
        expert=None if expert is None else str(expert),
        scores={} if scores is None else _scores(where, scores),
        prompt_tokens=int(_number(where, fields, "prompt_tokens")) if "prompt_tokens" in fields else None,
        priority=priority,
        fan_out=_fan_out(where, fields.get("fan_out", 1)),
    )


def _scores(where: str, scores: object) -> dict[str, float]:
    if not isinstance(scores, dict) or not scores:
        raise DatasetError(f"{where}: scores must map at least one expert to a number")
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise DatasetError(f"{where}: scores.{name}: {score!r} is not a number")
    return {name: float(score) for name, score in scores.items()}


def _fan_out(where: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise DatasetError(f"{where}: fan_out must be a whole number >= 1, not {value!r}")
    return value


def _number(where: str, fields: Mapping[str, object], key: str) -> float:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise DatasetError(f"{where}: {key} must be a number >= 0, not {value!r}")
    return float(value)


_KEYS = {"arrival_seconds", "expert", "scores", "output_tokens", "prompt_tokens", "priority", "fan_out"}


Profile = Literal["balanced", "bursty", "dominant", "interleaved", "zipf", "shift"]
PROFILES: tuple[Profile, ...] = get_args(Profile)

MEAN_GAP_SECONDS = 2.0  # between arrivals
MEAN_OUTPUT_TOKENS = 128.0
_LONGEST_OUTPUT_TOKENS = 1024
_BURST_REQUESTS = 12  # mean length of a burst for one expert
_BURST_GAP_SECONDS = 0.25
_DOMINANT_SHARE = 0.8
_ZIPF_EXPONENT = 1.1

_Choices = Callable[[Random, list[str], int], Iterator[str]]


def make_trace(profile: Profile, experts: list[str], requests: int, seed: int) -> Trace:
    """`requests` requests for `experts`; the first comes at 0 s.

    balanced: every expert alike. bursty: runs of about 12 for one expert, close together, then a pause. dominant: one
    expert takes 80 %. interleaved: one after the other in turn. zipf: popularity falls as rank^-1.1. shift: zipf whose
    ranks are dealt anew midway. Gaps and answers' lengths are exponential, but for the gaps of interleaved traffic.
    """
    random = Random(seed)
    names = list(_CHOICES[profile](random, experts, requests))
    arrivals = [
        0.0,
        *accumulate(_gap(profile, random, one, other) for one, other in pairwise(names)),
    ]
    made = (Request(round(at, 3), _output_tokens(random), name) for at, name in zip(arrivals, names, strict=True))
    return Trace(profile, tuple(made))


def _gap(profile: Profile, random: Random, before: str, after: str) -> float:
    if profile == "interleaved":
        return MEAN_GAP_SECONDS
    if profile == "bursty":  # as many requests an hour as the others
        pause = _BURST_REQUESTS * (MEAN_GAP_SECONDS - _BURST_GAP_SECONDS) + _BURST_GAP_SECONDS
        return random.expovariate(1 / (_BURST_GAP_SECONDS if before == after else pause))
    return random.expovariate(1 / MEAN_GAP_SECONDS)


def _output_tokens(random: Random) -> int:
    return min(_LONGEST_OUTPUT_TOKENS, 1 + int(random.expovariate(1 / MEAN_OUTPUT_TOKENS)))


def _balanced(random: Random, experts: list[str], requests: int) -> Iterator[str]:
    yield from random.choices(experts, k=requests)


def _bursty(random: Random, experts: list[str], requests: int) -> Iterator[str]:
    expert = random.choice(experts)
    for _ in range(requests):
        yield expert
        if random.random() < 1 / _BURST_REQUESTS:
            expert = random.choice(experts)


def _dominant(random: Random, experts: list[str], requests: int) -> Iterator[str]:
    others = experts[1:] or experts
    for _ in range(requests):
        yield experts[0] if random.random() < _DOMINANT_SHARE else random.choice(others)


def _interleaved(random: Random, experts: list[str], requests: int) -> Iterator[str]:
    order = random.sample(experts, len(experts))
    for position in range(requests):
        yield order[position % len(order)]


def _zipf(random: Random, experts: list[str], requests: int) -> Iterator[str]:
    yield from random.choices(experts, weights=_zipf_weights(len(experts)), k=requests)


def _shift(random: Random, experts: list[str], requests: int) -> Iterator[str]:
    first = requests // 2
    yield from _zipf(random, experts, first)
    yield from _zipf(random, random.sample(experts, len(experts)), requests - first)


def _zipf_weights(number: int) -> list[float]:
    return [rank**-_ZIPF_EXPONENT for rank in range(1, number + 1)]


_CHOICES: dict[Profile, _Choices] = {
    "balanced": _balanced,
    "bursty": _bursty,
    "dominant": _dominant,
    "interleaved": _interleaved,
    "zipf": _zipf,
    "shift": _shift,
}
