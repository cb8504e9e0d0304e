"""One expert of a training run: its costs and the prompts it accepts. A preset's costs follow from its base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coe_server.config.types import Modality, ServedName, contradiction

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
LARGEST_COST = 1e9  # billions of parameters, or a price: sums over all prompts stay finite
Cost = Annotated[float, Field(gt=0.0, le=LARGEST_COST, allow_inf_nan=False)]
_COSTS = ("active_params_b", "total_params_b", "price_per_million_tokens")
_SHARED = ("context_tokens", "vision", "modalities", "tools")


class ExpertSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ServedName
    of: ServedName | None = None
    cost_factor: Cost | None = None
    active_params_b: Cost | None = None
    total_params_b: Cost | None = None
    price_per_million_tokens: Cost | None = None
    context_tokens: Annotated[int, Field(gt=0)] | None = None
    vision: bool | None = None
    modalities: list[Modality] | None = None
    tools: bool = True

    @model_validator(mode="after")
    def _agrees_on_images(self) -> ExpertSettings:
        if fault := contradiction(self.vision, self.modalities):
            raise ValueError(f"{fault}; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _has_costs_of_its_own_or_its_bases(self) -> ExpertSettings:
        if self.of is None and self.cost_factor is not None:
            raise ValueError("cost_factor needs `of`, the expert whose engine it shares")
        if self.of is not None and (given := [name for name in _COSTS if getattr(self, name) is not None]):
            raise ValueError(
                f"{given[0]} belongs to its base, '{self.of}'; leave it out, or multiply the base's by cost_factor"
            )
        return self

    @property
    def sees(self) -> bool:
        """True if it is configured to accept images."""
        return bool(self.vision) or "image" in (self.modalities or ())

    @property
    def hosted_params_b(self) -> float:
        """Its parameters for the hosting limit; 0 if only its price is known."""
        return self.total_params_b or self.active_params_b or 0.0

    def on(self, base: ExpertSettings) -> ExpertSettings:
        """This preset with its base's costs times `cost_factor`, and its base's value for every key that it leaves out.

        Parameters for the hosting limit are not multiplied, because the weights are the same. Each name counts them.
        """
        factor = self.cost_factor or 1.0
        costs = {name: cost and cost * factor for name in _COSTS if (cost := getattr(base, name)) is not None}
        unsaid = {name: getattr(base, name) for name in _SHARED if name not in self.model_fields_set}
        return self.model_copy(
            update=unsaid | costs | {"total_params_b": base.hosted_params_b or None, "of": None, "cost_factor": None}
        )


def on_their_bases(experts: Sequence[ExpertSettings]) -> list[ExpertSettings]:
    """The experts, each preset with its own costs. Raises ValueError if a base is missing or is a preset itself."""
    known = {expert.name: expert for expert in experts if expert.of is None}
    for expert in experts:
        if expert.of is not None and expert.of not in known:
            raise ValueError(f"{expert.name}.of: '{expert.of}' is not one of {', '.join(known)}")
    return [expert if expert.of is None else expert.on(known[expert.of]) for expert in experts]
