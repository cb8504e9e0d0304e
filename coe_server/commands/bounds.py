"""The wait bound in words: its parts, and the bounds of experts that share no card with the others."""

from __future__ import annotations

from collections.abc import Iterator

from coe_server.cache.expert_cache import ExpertCache
from coe_server.cache.wait_bound import turn_seconds, turns_ahead


def wait_bound(cache: ExpertCache) -> str:
    """The wait bound and its parts, as one paragraph."""
    limits, bounds = cache.limits, cache.bounds
    return (
        f"No request waits longer than {bounds.seconds():,.0f} s: max_wait {limits.max_wait_seconds:g} s + "
        f"{_turns(cache)}. "
        f"A turn serves {limits.queue_limit} queued requests, {_at_a_time(cache)}, "
        f"each of maximum length ({limits.max_generation_seconds:g} s); with answers of "
        f"{bounds.usual_answer_seconds:.1f} s, the slowest expert's (measured, or estimated before), the bound would "
        f"be {bounds.usual_seconds():,.0f} s.{_with_fan_out(cache)}"
    )


def _at_a_time(cache: ExpertCache) -> str:
    """The number of concurrent requests, and the expert that sets it if it has its own `max_concurrency`."""
    group = cache.bounds.longest
    fewest = group.limits(cache.limits).max_concurrency
    own = next((name for name in group.experts if cache.slots[name].places == fewest), "")
    whose = f" (experts.{own}.max_concurrency)" if fewest != cache.limits.max_concurrency else ""
    return f"{fewest} at a time{whose}"


def _with_fan_out(cache: ExpertCache) -> str:
    """A sentence, if requests for several answers can make the bound longer; else empty."""
    widest = cache.bounds.seconds(widest=cache.limits.max_fan_out)
    if widest == cache.bounds.seconds():
        return ""
    return (
        f" Requests that ask for several answers at once (n, best_of, lists of prompts; up to "
        f"{cache.limits.max_fan_out}, scheduling.max_fan_out) can make it {widest:,.0f} s."
    )


def _turns(cache: ExpertCache) -> str:
    bounds, group = cache.bounds, cache.bounds.longest
    turn = f"a turn of {turn_seconds(group.limits(cache.limits)):,.0f} s"
    if not bounds.groups:
        return f"{turn}, since no experts share the device"
    if group in bounds.alone:
        return f"{turn} of '{group.experts[0]}', which is never evicted for another expert"
    known, device = "measured" if bounds.are_measured else "estimated", "the device"
    switch = f"a switch of {group.switch_seconds:,.1f} s, {known}"
    if group.start_elsewhere_seconds:
        switch = f"{switch}, and a start on other cards of {group.start_elsewhere_seconds:,.1f} s"
        device = "their cards"
    then = f" + {group.starts_ahead_seconds:,.1f} s for starts on other cards" if group.starts_ahead_seconds else ""
    if (sharing := len(group.experts)) == 1:
        return f"{turn} and {switch}{then}, for one expert that has {device} to itself"
    ahead = f"one for each of the {sharing} experts that share {device}, and the present one"
    return f"{turns_ahead(sharing)} x ({turn} and {switch}){then}, {ahead}"


def bounds_of_groups(cache: ExpertCache) -> Iterator[str]:
    """A sentence for each group of experts that shares no card with the others; none where there is one group."""
    groups = cache.bounds.groups
    for group in groups if len(groups) > 1 else ():
        bound = group.bound_seconds(cache.limits)
        yield f"At most {bound:,.0f} s for {', '.join(group.experts)}, which share no card with the others."
