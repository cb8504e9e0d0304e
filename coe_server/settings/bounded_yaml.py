"""YAML of bounded length, also after each alias has been replaced by what it names. Knows no setting.

A few hundred bytes of aliases of aliases stand for gigabytes, which whatever checks or prints them would make.
"""

from __future__ import annotations

from typing import Any

import yaml


class UnusableYaml(Exception):
    """What is no YAML, or too long; the message says what is wrong, after `line` where one is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def parse_yaml(text: str, most_characters: int, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The value. Raises UnusableYaml."""
    if len(text) > most_characters:
        raise UnusableYaml(f"is longer than {most_characters:,} characters")
    try:
        return _value(loader(text), most_characters)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise UnusableYaml(f"is not YAML: {error.problem}{_tab(error)}", line) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UnusableYaml(f"is not YAML: {error}") from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:  # a date, or a number, of old
        raise UnusableYaml(f"is not YAML: a value is not what it looks like ({error})") from error


def _value(loader: yaml.SafeLoader, most_characters: int) -> Any:
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, most_characters, {}) > most_characters:
            raise UnusableYaml(f"is longer than {most_characters:,} characters when its aliases are replaced")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, most: int, known: dict[int, int]) -> int:
    """Characters of the scalars and one for each node, aliases replaced; more than `most` without an end.

    `known` has a node while it is looked at, too: an alias inside of what it names has no size.
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


def _tab(error: yaml.MarkedYAMLError) -> str:
    return "; indent with blanks" if "'\\t'" in str(error.problem) else ""
