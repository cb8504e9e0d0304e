"""`probes.yaml`: prompts with a known category and expert, the self-test of a router.

The file is not covered by the checksums, so that it can be edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coe_server.config.file import UnusableYaml, parse_yaml
from coe_server.config.mistakes import Mistake
from coe_server.errors import ArtifactError, CoeError
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.features import well_formed
from coe_server.routing.manifest import Name
from coe_server.system.visible import brief, visible

if TYPE_CHECKING:
    from coe_server.routing.router import Router

PROBES = "probes.yaml"
LARGEST_FILE_BYTES = 4_000_000
SHOWN_CHARACTERS = 60
MOST_PROBES = 10_000  # a self-test takes a second or two
LONGEST_READ = 10_000  # characters of a prompt that are read for its beginning


class Probe(BaseModel):
    """A prompt, its category (None: not tested), and its expert by objective."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(min_length=1)]
    category: Name | None = None
    experts: Annotated[dict[Name, Name], Field(max_length=1_000)] = {}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    probes: Annotated[list[Probe], Field(max_length=MOST_PROBES)]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A probe's outcome: `category`, `experts` by objective, and a sentence for each difference from the expected."""

    probe: Probe
    category: str | None
    experts: dict[str, str]
    failures: tuple[str, ...]


def read_probes(folder: Path) -> tuple[Probe, ...]:
    """The probes in an artifact folder; empty without a file. Raises ArtifactError if the file is invalid."""
    path = folder / PROBES
    if not path.is_file():
        return ()
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ArtifactError(f"router artifact: {path} is larger than {LARGEST_FILE_BYTES:,} bytes")
        raw = parse_yaml(path.read_text(encoding="utf-8"), LARGEST_FILE_BYTES)
        return tuple(_File.model_validate(raw).probes)
    except ValidationError as error:
        mistake = Mistake.first(error.errors(include_url=False, include_input=False))
        raise ArtifactError(f"router artifact: {path} {mistake.invalid}") from error
    except UnusableYaml as error:
        raise ArtifactError(f"router artifact: {path} {brief(' '.join(str(error).split()))}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"router artifact: {path} cannot be read: {' '.join(str(error).split())}") from error


def write_probes(folder: Path, probes: Sequence[Probe]) -> None:
    """Write the file, even without probes, so that they can be added by hand."""
    written = [probe.model_copy(update={"prompt": well_formed(probe.prompt)}) for probe in probes]
    plain = {"probes": [probe.model_dump(exclude_none=True) for probe in written]}
    text = yaml.safe_dump(plain, allow_unicode=True, sort_keys=False, width=110)
    (folder / PROBES).write_text(text, encoding="utf-8")


def run_probe(router: Router, probe: Probe) -> ProbeResult:
    """Route the prompt under every objective of the probe, with all experts on disk."""
    failures: list[str] = []
    category, experts = None, {}
    away = dict.fromkeys(router.expert_names, Availability("disk", 0.0))
    conversation = Conversation.of_prompt(probe.prompt)
    for objective in probe.experts or dict.fromkeys(router.objectives[:1]):
        try:
            decision = router.route(conversation, RouteOptions(objective=objective), away)
        except CoeError as error:
            failures.append(str(error))
            continue
        category, experts[objective] = decision.category, decision.expert
        wanted = probe.experts.get(objective)
        if wanted is not None and decision.expert != wanted:
            failures.append(f"under {objective} it goes to {decision.expert}, not to {wanted}")
        name = probe.category or decision.category or ""
        given = router.artifact.pins(objective).get(name)
        if given not in (None, decision.expert):
            failures.append(f"under {objective} it goes to {decision.expert}, but category {name} was given to {given}")
    if probe.category is not None and experts and category != probe.category:
        failures.append(f"its category is {category}, not {probe.category}")
    return ProbeResult(probe, category, experts, tuple(failures))


def failing(router: Router, folder: Path) -> list[str]:
    """One sentence per failing probe of the artifact. Raises ArtifactError if the file cannot be read."""
    if router.artifact.manifest.features.embedded_before_routing:
        return []  # prompts would first need embeddings from a model or an endpoint
    results = [run_probe(router, probe) for probe in read_probes(folder)]
    return [
        f"probe {shown(result.probe.prompt)!r}: {'; '.join(result.failures)}" for result in results if result.failures
    ]


def shown(prompt: str) -> str:
    """The beginning of a prompt, on one line."""
    line = visible(" ".join(prompt[:LONGEST_READ].split()))
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
