"""What one caller may name: the experts and objectives of its key. Pure; knows nothing of how a key is shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coe_server.errors import ModelWithheld, UnknownModel
from coe_server.http.options import AUTO, model_names, read_options
from coe_server.keys import Key
from coe_server.routing.decision import RouteOptions


@dataclass(frozen=True, slots=True)
class Reach:
    """`experts` and `objectives` are what may be named, in the server's order; `withheld` is what else there is."""

    experts: tuple[str, ...]
    objectives: tuple[str, ...]
    default_objective: str
    is_limited: bool = False
    has_own_objectives: bool = False
    withheld: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)  # further names, those of what is withheld among them

    @classmethod
    def of(
        cls,
        key: Key | None,
        experts: Collection[str],
        objectives: Collection[str],
        default_objective: str,
        aliases: Mapping[str, str],
    ) -> Reach:
        """What this key reaches; without a key, everything. `auto` means an objective that the key may ask for."""
        if key is None or (key.experts is None and key.objectives is None):
            return cls(tuple(experts), tuple(objectives), default_objective, aliases=aliases)
        allowed_experts, allowed_objectives = key.experts, key.objectives
        own_experts = tuple(one for one in experts if allowed_experts is None or one in allowed_experts)
        own_objectives = tuple(one for one in objectives if allowed_objectives is None or one in allowed_objectives)
        reachable = allowed_objectives is None or default_objective in own_objectives
        default = default_objective if reachable else next(iter(own_objectives), default_objective)
        withheld = set(model_names(objectives, experts)) - set(model_names(own_objectives, own_experts))
        return cls(
            own_experts,
            own_objectives,
            default,
            is_limited=allowed_experts is not None,
            has_own_objectives=allowed_objectives is not None,
            withheld=frozenset(withheld),
            aliases=aliases,
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Every name this caller may put under `model`."""
        names = model_names(self.objectives, self.experts)
        return names + tuple(alias for alias, goal in self.aliases.items() if goal in names)

    def options(self, fields: Mapping[str, Any]) -> RouteOptions:
        """The options in a body. Raises ModelWithheld for what the key may not use, else as `read_options`."""
        model = fields.get("model")
        if isinstance(model, str) and model in self.aliases:
            fields = {**fields, "model": self.aliases[model]}
        self._require(fields.get("model"), "model", model)
        coe = fields.get("coe")
        if isinstance(coe, Mapping):
            self._require_objective(coe.get("objective"))
            allow = coe.get("allow")
            for name in allow if isinstance(allow, list) else ():
                self._require(name, "coe.allow")
        options = read_options(fields, self.objectives, self.experts, self.default_objective)
        if self.is_limited and options.allow is None:
            return replace(options, allow=frozenset(self.experts))
        return options

    def seen(self, decision: Mapping[str, Any]) -> dict[str, Any]:
        """A decision as plain values, with the experts of this key alone in its ranking."""
        mine = [one for one in decision["ranking"] if one["expert"] in self.experts] if self.is_limited else None
        return {**decision} if mine is None else {**decision, "ranking": mine}

    def _require(self, name: object, param: str, asked: object = None) -> None:
        """`asked` is what the caller calls it: what an alias stands for is told to those alone who may use it."""
        if isinstance(name, str) and name in self.withheld:
            raise ModelWithheld(
                f"this key has no access to '{asked or name}'; it has to {', '.join(self.models)}", param
            )

    def _require_objective(self, name: object) -> None:
        self._require(f"{AUTO}:{name}", "coe.objective")
        if self.has_own_objectives and isinstance(name, str) and name not in self.objectives:
            known = ", ".join(self.objectives) or "none for this key"
            raise UnknownModel(f"there is no objective '{name}'; there are {known}", "coe.objective")
