"""Every error that a caller may meet is in the manual, under its code and its status."""

import re
from pathlib import Path

from coe_server import errors

MANUAL = (Path(__file__).parents[1] / "docs" / "operate.md").read_text()
BY_THE_FRAMEWORK = {("method_not_allowed", "405")}
AT_THE_START = {
    "invalid_configuration",
    "invalid_router_artifact",
    "invalid_dataset",
    "download_failed",
}  # a server is never up with these
BETWEEN_SERVERS = {"bad_snapshot"}  # a caller meets `expert_unavailable`


def raised():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CoeError)]
    for kind in kinds:
        if kind.code not in AT_THE_START | BETWEEN_SERVERS:
            yield kind.code, "4xx" if kind is errors.EngineRefused else str(kind.status)


def documented():
    """Codes and statuses of a row stand in the same order, or one of them holds for all of the other."""
    section = MANUAL.partition("\n## Errors\n")[2].partition("\n## ")[0]
    for codes, statuses in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section, re.MULTILINE):
        names, numbers = re.findall(r"`([a-z_]+)`", codes), statuses.split(", ")
        pairs = max(len(names), len(numbers))
        yield from zip(names * (pairs // len(names)), numbers * (pairs // len(numbers)), strict=True)


def test_the_manual_lists_every_code_with_its_status():
    assert sorted(documented()) == sorted(set(raised()) | BY_THE_FRAMEWORK)
