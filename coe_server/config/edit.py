"""Pure: the text of a configuration with one expert more or less. All other lines stay as they are, comments too.

Lines are put in or taken out where the list of experts is written one entry a line. Any other style is read and written
anew by ruamel.yaml, which keeps comments and quotes but not every blank. Both results are read back and compared.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from coe_server.config.file import LONGEST_FILE_BYTES, UnusableYaml, parse_yaml
from coe_server.errors import ConfigError

_WIDEST = 1 << 20  # no line is folded
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
_NOT_TEXT = frozenset(("true", "false", "yes", "no", "on", "off", "null", "y", "n"))


def with_expert(text: str, entry: Mapping[str, Any]) -> str:
    """The text with this entry at the end of `experts`. Raises ConfigError if there is no such list, or the name is
    taken."""
    experts = _experts(text)
    if entry["name"] in _names(experts):
        raise ConfigError(f"experts.{entry['name']}: is there already; give another name (--name), or remove it first")
    wanted = [*experts, dict(entry)]
    return _first_that_gives(wanted, text, (lambda: _put_in(text, entry), lambda: _written_anew(text, wanted)))


def without_expert(text: str, name: str) -> str:
    """The text without this expert and the comment lines directly above its entry. Raises ConfigError if there is none
    of this name."""
    experts = _experts(text)
    if name not in (names := _names(experts)):
        known = ", ".join(names) or "none"
        raise ConfigError(f"experts: there is no expert '{name}' in the file; there are {known}")
    wanted = [one for one in experts if not (isinstance(one, Mapping) and one.get("name") == name)]
    at = names.index(name)
    return _first_that_gives(wanted, text, (lambda: _taken_out(text, at), lambda: _written_anew(text, wanted)))


def one_line(value: Any) -> str:
    """The value as YAML on one line."""
    match value:
        case bool() | int() | float() | None:
            return yaml.safe_dump(value).splitlines()[0]
        case Mapping():
            return f"{{{', '.join(f'{one_line(key)}: {one_line(part)}' for key, part in value.items())}}}"
        case list():
            return f"[{', '.join(map(one_line, value))}]"
    if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return str(value)
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=_WIDEST).strip()


def _experts(text: str) -> list[Any]:
    experts = _read(text).get("experts")
    if not isinstance(experts, list):
        raise ConfigError("experts: is no list in the file; `coe config --example serve` shows one")
    return experts


def _read(text: str) -> dict[str, Any]:
    try:
        found = parse_yaml(text, LONGEST_FILE_BYTES)
    except UnusableYaml as error:
        place = f"line {error.line}: " if error.line is not None else ""
        raise ConfigError(f"{place}{' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError("must be a mapping of settings (key: value)")
    return found


def _names(experts: list[Any]) -> list[str]:
    return [str(one.get("name")) if isinstance(one, Mapping) else "" for one in experts]


def _first_that_gives(wanted: list[Any], text: str, ways: tuple[Callable[[], str | None], ...]) -> str:
    """The first of the texts that says what the old one said, but for these experts."""
    goal = {**_read(text), "experts": wanted}
    for way in ways:
        found = way()
        if found is not None and _says(found, goal):
            return found
    raise ConfigError("the file is written in a way that cannot be edited; change its experts by hand")


def _says(text: str, goal: dict[str, Any]) -> bool:
    try:
        return _read(text) == goal
    except ConfigError:
        return False


def _put_in(text: str, entry: Mapping[str, Any]) -> str | None:
    """The text with the entry's lines after those of the last one; None where the list is not one entry a line."""
    items = _items(text)
    if not items:
        return None
    lines, (first, last) = text.splitlines(keepends=True), items[-1]
    dash = lines[first].index("-")
    at = max(number for number in range(first, last) if _is_content(lines[number])) + 1
    end = "\r\n" if lines[0].endswith("\r\n") else "\n"
    if not lines[at - 1].endswith("\n"):
        lines[at - 1] += end
    pairs = enumerate(entry.items())
    new = [f"{'  ' if number else '- '}{key}: {one_line(value)}{end}" for number, (key, value) in pairs]
    return "".join((*lines[:at], *(" " * dash + line for line in new), *lines[at:]))


def _taken_out(text: str, at: int) -> str | None:
    """The text without the lines of one entry; None where the list is not one entry a line."""
    items = _items(text)
    if items is None or len(items) == 1:
        return None
    lines, (first, last) = text.splitlines(keepends=True), items[at]
    dash = lines[first].index("-")
    end = max(number for number in range(first, last) if _is_content(lines[number])) + 1
    while first and lines[first - 1].startswith(" " * dash + "#"):
        first -= 1
    return "".join((*lines[:first], *lines[end:]))


def _items(text: str) -> list[tuple[int, int]] | None:
    """The first line of each expert's entry, and the line after its last; None where entries share lines."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "it was read before"
    experts = next((value for key, value in root.value if key.value == "experts"), None)  # it may be merged in (<<)
    if not isinstance(experts, yaml.SequenceNode) or experts.flow_style:
        return None
    lines, starts = text.splitlines(), [item.start_mark.line for item in experts.value]
    ends = [*starts[1:], experts.end_mark.line]
    if any(not lines[start].lstrip().startswith("-") for start in starts) or len(set(starts)) < len(starts):
        return None
    at_the_end = experts.end_mark.index == len(text)
    return list(zip(starts, [*ends[:-1], len(lines) if at_the_end else ends[-1]], strict=True))


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _written_anew(text: str, experts: list[Any]) -> str | None:
    """The file read and written by ruamel.yaml, entries of other experts as they were."""
    writer = YAML()
    writer.preserve_quotes, writer.width = True, _WIDEST
    out = io.StringIO()
    try:
        settings = writer.load(text)
        there = settings["experts"]
        for place in reversed(range(len(there))):
            if there[place] not in experts:
                del there[place]
        there.extend(experts[len(there) :])
        writer.dump(settings, out)
    except (YAMLError, LookupError, TypeError, AttributeError):
        return None
    return out.getvalue()
