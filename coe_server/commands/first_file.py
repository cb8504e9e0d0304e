"""Pure: what was found on a machine -> the text of a first serve.yaml, with the reason for each of its lines.

Names of files may be anything: values are quoted, and in a comment nothing ends its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from coe_server.commands.machine_here import VLLM, MachineHere
from coe_server.commands.models_here import Skipped
from coe_server.commands.proposal import Proposed
from coe_server.config.edit import one_line
from coe_server.system.visible import visible

_MEMORY_ON_CARDS = {
    "device": "GPU memory for weights and KV caches: what is free of each card at the start",
    "host": "RAM for engine processes and sleeping experts: 80 % of what is available at the start",
}
_MEMORY_IN_RAM = {
    "device": "RAM for weights and KV caches: auto is 30 % of what is available at the start",
    "host": "RAM for engine processes and sleeping experts: auto is 50 % of what is available at the start",
}


def first_file(
    machine: MachineHere,
    memory: Mapping[str, str],
    experts: Sequence[Proposed],
    skipped: Iterable[Skipped],
    places: Iterable[str],
) -> str:
    """The whole file, with experts that can run here."""
    parts = (
        _head(machine, places),
        ["http: {host: 127.0.0.1, port: 8080}   # other machines: give keys first (docs/deploy.md)"],
        _memory(machine, memory),
        _vllm(machine, experts),
        _experts(experts),
        _aliases(experts),
        _skipped(skipped),
    )
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part))) + "\n"


def _head(machine: MachineHere, places: Iterable[str]) -> Iterator[str]:
    yield "# Written by `coe init` for this machine. Next: `coe validate` shows what fits where, `coe serve` starts it."
    yield "# `coe config --example serve` explains every key."
    yield "#"
    for line in machine.told():
        yield f"# {visible(line)}"
    yield f"# Looked for models in: {', '.join(map(visible, places)) or 'no folder'}"


def _memory(machine: MachineHere, memory: Mapping[str, str]) -> Iterator[str]:
    yield "memory:"
    for key, why in (_MEMORY_ON_CARDS if machine.cards else _MEMORY_IN_RAM).items():
        yield f"  {key}: {memory[key]:<6}  # {why}"


def _vllm(machine: MachineHere, experts: Sequence[Proposed]) -> Iterator[str]:
    """The section `vllm`; empty if no expert needs it."""
    shown = [one for one in experts if not one.left_out]
    program = machine.programs.get(VLLM)
    by_vllm = program is not None and any(one.entry["engine"] == "vllm" for one in shown)
    platform = bool(shown and machine.cards and not machine.is_found_by_itself)
    if by_vllm or platform:
        yield "vllm:"
    if by_vllm and program is not None:
        yield f"  command: {one_line(program.path)}"
    if platform:
        yield "  platform: cuda   # the driver's library shows cards, and `auto` would not find them"


def _experts(experts: Sequence[Proposed]) -> Iterator[str]:
    yield "experts:"
    shown = [one for one in experts if not one.left_out]
    for one in shown:
        yield from _entry(one)
    if not shown:
        yield "  # No model that can run here was found. This one only repeats the question."
        yield "  - {name: pretend, engine: simulated, weights_bytes: 1MiB, start_seconds: 1}"
    for one in experts:
        if one.left_out:
            yield f"  # Left out: {visible(one.left_out)}"
            yield from (f"  # {line[2:]}" for line in _entry(one))


def _entry(one: Proposed) -> Iterator[str]:
    yield f"  # {visible(one.told)}"
    for number, (key, value) in enumerate(one.entry.items()):
        yield f"  {'  ' if number else '- '}{key}: {one_line(value)}"


def _aliases(experts: Sequence[Proposed]) -> Iterator[str]:
    named = {alias: one.name for one in experts if not one.left_out for alias in one.aliases}
    first = next((one.name for one in experts if not one.left_out), "pretend")
    yield "aliases:" if named else "# aliases:"
    yield f"  # gpt-4o: {first}   # a client with a built-in name is answered by an expert of yours"
    for alias, name in named.items():
        yield f"  {one_line(alias)}: {one_line(name)}"


def _skipped(skipped: Iterable[Skipped]) -> Iterator[str]:
    for number, one in enumerate(skipped):
        if number == 0:
            yield "# Passed over:"
        yield f"# - {visible(one.place)}: {visible(one.why)}"
