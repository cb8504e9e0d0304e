"""Reads YAML files of settings, safely.

The size of YAML is limited, also after expansion of aliases: a few hundred bytes of nested aliases can expand to
gigabytes. Independent of particular settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from coe_server.errors import ConfigError
from coe_server.system.visible import brief

LONGEST_FILE_BYTES = 1 << 20


def read_settings_file(path: Path, explained_in: str) -> dict[str, Any]:
    """The settings in a file. `explained_in`: the file that explains its keys. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE_BYTES + 1)  # a pipe has no size
        raw = parse_yaml(data.decode("utf-8"), LONGEST_FILE_BYTES, _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error
    except UnusableYaml as error:
        place = f", line {error.line}" if error.line is not None else ""
        raise ConfigError(f"{path}{place}: {brief(' '.join(str(error).split()))}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings (key: value); {explained_in} explains them")
    return raw


MOST_NESTED = 64


class _Bounded(yaml.SafeLoader):
    """Safe YAML of bounded nesting: PyYAML composes by recursion, and looks far ahead at each level."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise UnusableYaml(f"is nested deeper than {MOST_NESTED} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _UniqueKeys(_Bounded):
    """Safe YAML without duplicate keys, of which PyYAML would silently ignore all but the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"the key '{key.value}' occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class UnusableYaml(Exception):
    """Invalid or too long YAML; `line` is set if known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def parse_yaml(text: str, most_characters: int, loader: type[_Bounded] = _Bounded) -> Any:
    """Parse YAML within `most_characters`. Raises UnusableYaml."""
    if len(text) > most_characters:
        raise UnusableYaml(f"is longer than {most_characters:,} characters")
    try:
        return _value(loader(text), most_characters)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise UnusableYaml(f"is not YAML: {error.problem}{_way_out(error)}", line) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UnusableYaml(f"is not YAML: {error}") from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:  # e.g. an invalid date
        raise UnusableYaml(f"is not YAML: a value is invalid ({error})") from error


def _value(loader: yaml.SafeLoader, most_characters: int) -> Any:
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, most_characters, {}) > most_characters:
            raise UnusableYaml(f"is longer than {most_characters:,} characters after expansion of its aliases")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, most: int, known: dict[int, int]) -> int:
    """Size with aliases expanded: the scalars' characters plus one per node. Stops counting beyond `most`.

    `known` also has the nodes being counted: a recursive alias has no size.
    """
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = most + 1
    size = 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
    for part in _parts(node):
        size = min(size + _size(part, most, known), most + 1)
    known[id(node)] = size
    return size


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return []


_WAYS_OUT = (  # what PyYAML says; what to do
    ("'\\t'", "indent with spaces"),
    ("expected <block end>", "indent this line as its neighbours are"),
    ("mapping values are not allowed here", "indent this line as its neighbours are, or quote a value that has ': '"),
    ("expected ',' or", "close the bracket that line {line} opens"),
    ("unexpected end of stream", "close the quote that line {line} opens"),
    ("that cannot start any token", "put the value in quotes"),
    ("unhashable key", "put a text with braces or brackets in quotes"),
)


def _way_out(error: yaml.MarkedYAMLError) -> str:
    opened = error.context_mark.line + 1 if error.context_mark is not None else "?"
    told = (what for problem, what in _WAYS_OUT if problem in str(error.problem))
    return "".join(f"; {what.format(line=opened)}" for what in [*told][:1])
