"""Hints of `coe validate`: settings that would improve a plan, with numbers. Pure: each is tried on the plan itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from coe_server.cache.placement import kept_by_sleepers
from coe_server.commands.plan import Plan, Planned, make_plan
from coe_server.engines.hub import gib

_SMALLER_CACHES = tuple(size << 20 for size in (3072, 2048, 1536, 1024, 512))  # largest first


def hints(plan: Plan) -> Iterator[str]:
    """Settings that would improve the plan, with numbers; a sentence each."""
    yield from _unknown_sizes(plan)
    yield from _ways_to_fit(plan)
    yield from _tokens(plan)
    if not plan.fits or len(plan.found.loaded) == len(plan.experts):
        return
    yield from _smaller_cache(plan)
    yield from _no_sleep(plan)


def _unknown_sizes(plan: Plan) -> Iterator[str]:
    """Experts that take whole cards because their size is not given, where others could use them."""
    names = [one.demand.name for one in plan.experts if not one.size_is_known]
    if names and len(plan.experts) > 1:
        yield (
            f"experts.{', '.join(names)}: device_bytes is not given, so a whole card is planned for each; give what the"
            " program takes, weights and KV cache (`coe init` writes it for GGUF files)"
        )


def _ways_to_fit(plan: Plan) -> Iterator[str]:
    """Settings with which an expert fits that is slightly too large for its cards."""
    largest, whole = max(plan.rooms.cards), max(plan.rooms.there)
    for one in plan.experts:
        if one.demand.name not in plan.found.left_out or one.demand.awake <= largest:
            continue
        if (smaller := one.kv_bytes - (one.demand.awake - largest)) >= _SMALLER_CACHES[-1]:
            tokens = f" ({smaller // one.token_bytes:,} tokens)" if one.token_bytes else ""
            yield f"experts.{one.demand.name}.kv_cache: {smaller >> 20}MiB makes it fit{tokens}"
        if one.demand.awake <= whole:
            yield (
                f"memory.device: {-(-one.demand.awake >> 20)}MiB makes '{one.demand.name}' fit; the card has"
                f" {gib(whole)}, of which the driver and other programs need some"
            )


def _tokens(plan: Plan) -> Iterator[str]:
    """KV caches that hold less than a model's context; experts of which the same holds share a sentence."""
    said: dict[str, list[str]] = {}
    for one in plan.experts:
        if (sentence := _too_few_tokens(one)) is not None:
            said.setdefault(sentence, []).append(one.demand.name)
    for sentence, names in said.items():
        yield f"experts.{', '.join(names)}: {sentence}"


def _too_few_tokens(one: Planned) -> str | None:
    tokens, longest = one.kv_tokens, one.longest_tokens
    if tokens is None or longest is None or one.token_bytes is None or tokens >= longest:
        return None
    cache, need = (
        f"{gib(one.kv_bytes)} of KV cache = {tokens:,} tokens",
        f"kv_cache: {-(-longest * one.token_bytes >> 20)}MiB",
    )
    if one.shortens:
        return f"{cache} of a context of {longest:,}; requests that need more are routed elsewhere; {need} holds all"
    shorter = f"args: {{max_model_len: {tokens // 1024 * 1024}}}"
    return f"{cache}, and the context is {longest:,}; vLLM refuses that: {shorter}, or {need}"


def _smaller_cache(plan: Plan) -> Iterator[str]:
    """The largest KV cache with which more experts are loaded together."""
    before = set(plan.found.loaded)
    for size in _SMALLER_CACHES:
        if (smaller := make_plan([_with_cache(one, size) for one in plan.experts], plan.rooms)) == plan:
            continue
        more = set(smaller.found.loaded)
        if len(more) > len(before):
            tokens = [one.kv_tokens for one in smaller.experts if one.kv_tokens and one.demand.name in more]
            least = f", at least {min(tokens):,} tokens each" if tokens else ""
            count = "one more" if len(more) == len(before) + 1 else f"{len(more) - len(before)} more"
            names = ", ".join(smaller.found.loaded)
            yield f"vllm.kv_cache: {_key(size)} makes room for {count}: {names} together{least}"
            return


def _no_sleep(plan: Plan) -> Iterator[str]:
    """Device memory that is gained if experts are stopped instead of sleeping."""
    names = [one.demand.name for one in plan.experts if one.demand.name in plan.found.asleep and one.demand.asleep]
    if not names:
        return
    changed = [_never_asleep(one) if one.demand.name in names else one for one in plan.experts]
    gained = len(make_plan(changed, plan.rooms).found.loaded) - len(plan.found.loaded)
    if gained > 0:
        kept = max(kept_by_sleepers(plan.found, plan.demands).values())
        yield (
            f"sleep: false for {', '.join(names)} frees {gib(kept)} of a card, for {gained} more loaded together; they"
            " then start from disk instead of waking"
        )


def _with_cache(one: Planned, size: int) -> Planned:
    if one.kv_is_own or size >= one.kv_bytes:
        return one
    return replace(one, kv_bytes=size, demand=replace(one.demand, awake=one.demand.awake - one.kv_bytes + size))


def _never_asleep(one: Planned) -> Planned:
    return replace(one, demand=replace(one.demand, can_sleep=False, asleep=0))


def _key(size: int) -> str:
    return f"{size >> 30}GiB" if size % (1 << 30) == 0 else f"{size >> 20}MiB"
