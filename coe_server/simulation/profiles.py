"""Pure: made-up traffic of known shapes, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from random import Random
from typing import Literal, get_args

from coe_server.simulation.traces import Request, Trace

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
