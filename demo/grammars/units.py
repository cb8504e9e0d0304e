"""Conversions between metric units of one quantity: moving the decimal point, nothing else."""

from decimal import Decimal
from random import Random

from grammars.draft import Draft, worded

PHRASINGS = {
    "convert": ("convert {value} {source} to {target}", "{value} {source} to {target}", "{value} {source} in {target}"),
    "how-many": ("how many {target} are {value} {source}?", "how many {target} make {value} {source}?"),
    "express": ("express {value} {source} in {target}", "write {value} {source} in {target}"),
    "measured": ("the label says {value} {source}. What is that in {target}?", "what is {value} {source} in {target}?"),
}
BASE_UNITS = ["metres", "grams", "litres", "watts", "volts", "amps", "joules", "newtons", "hertz", "pascals"]
PREFIXES = {"milli": -3, "centi": -2, "deci": -1, "": 0, "hecto": 2, "kilo": 3}
DIGITS = [number for number in range(2, 1000) if number not in {10, 100}]  # never "1 metres"


def draw(rng: Random) -> Draft:
    """One value in one unit, wanted in another; the key is the unordered pair of units."""
    base = rng.choice(BASE_UNITS)
    source, target = rng.sample(list(PREFIXES), 2)
    value = Decimal(rng.choice(DIGITS)).scaleb(-rng.choice([0, 0, 1]))
    answer = value.scaleb(PREFIXES[source] - PREFIXES[target])
    units = source + base, target + base
    family, prompt = worded(rng, PHRASINGS, value=plain(value), source=units[0], target=units[1])
    return Draft(key=" ".join(sorted(units)), family=family, prompt=prompt, answer=f"{plain(answer)} {units[1]}")


def plain(value: Decimal) -> str:
    """The number without exponent or trailing zeros after the point."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
