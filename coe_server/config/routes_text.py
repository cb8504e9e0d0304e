"""The text of a routes file: an example is added in its place, and every comment and blank stays. Pure."""

from __future__ import annotations

import json
from typing import Any

import yaml

from coe_server.config.routes import DEFAULT_ROUTE
from coe_server.errors import ConfigError


def with_example(text: str, route: str, example: str) -> str:
    """The text with one more example of a route. Raises ConfigError if its form allows no safe change."""
    try:
        target = _target(yaml.compose(text, yaml.SafeLoader), route)
        changed = _inserted(text, target, json.dumps(example, ensure_ascii=not example.isprintable()))
        wanted = yaml.safe_load(text)
        _append(wanted, route, example)
        is_right = yaml.safe_load(changed) == wanted
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"the routes file is not YAML that can be changed: {' '.join(str(error).split())}") from error
    if not is_right:
        raise ConfigError(f"the examples of route {route!r} cannot be added to in this form; edit the file")
    return changed


def _target(root: Any, route: str) -> yaml.MappingNode:
    """The mapping of a route. Raises ConfigError if there is none."""
    where = root if route == DEFAULT_ROUTE else _value(root, "routes")
    target = _value(where, route)
    if not isinstance(target, yaml.MappingNode):
        raise ConfigError(
            f"the routes file has no mapping for route {route!r} to add an example to; write {route}: {{expert: NAME}}"
        )
    return target


def _value(node: Any, key: str) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _inserted(text: str, target: yaml.MappingNode, quoted: str) -> str:
    examples = _value(target, "examples")
    if isinstance(examples, yaml.SequenceNode) and examples.value:
        last = examples.value[-1]
        at = _end_of(text, last)
        if examples.flow_style:
            return f"{text[:at]}, {quoted}{text[at:]}"
        indent = " " * examples.start_mark.column
        return f"{text[:at]}\n{indent}- {quoted}{text[at:]}"
    if examples is not None or not target.value:
        raise ConfigError("the examples are not a list with entries; edit the file")
    key, value = target.value[0]
    at = _end_of(text, value)
    if target.flow_style:
        return f"{text[:at]}, examples: [{quoted}]{text[at:]}"
    return f"{text[:at]}\n{' ' * key.start_mark.column}examples: [{quoted}]{text[at:]}"


def _end_of(text: str, node: yaml.Node) -> int:
    """Where a value ends, with the rest of its line's comment, unless the value is followed by more on the line."""
    at: int = node.end_mark.index
    while at and text[at - 1] in " \n\r\t":  # a block scalar ends at the next key
        at -= 1
    line_end = text.find("\n", at)
    rest = text[at : line_end if line_end >= 0 else len(text)]
    return at + len(rest) if rest.lstrip().startswith("#") else at


def _append(wanted: Any, route: str, example: str) -> None:
    target = wanted[DEFAULT_ROUTE] if route == DEFAULT_ROUTE else wanted["routes"][route]
    examples = target.get("examples", [])
    if example in examples:
        raise ConfigError(f"route {route!r} has this example already")
    target["examples"] = [*examples, example]
