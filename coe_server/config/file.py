"""Reads YAML files of settings; a mistake becomes one sentence with key, value and what is allowed.

The size of YAML is limited, also after expansion of aliases: a few hundred bytes of nested aliases can expand to
gigabytes. Independent of particular settings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

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


_LONGEST_CHARACTERS = 600  # limit of a sentence that quotes a value
_UNKNOWN = "extra_forbidden"
_SENTENCES = {
    _UNKNOWN: "{key}: there is no such key",
    "missing": "{key}: is missing",
    "union_tag_invalid": "{key}.{tag}: '{found}' is not one of {tags}",
    "union_tag_not_found": "{key}.{tag}: is missing; write one of {tags}",
    "literal_error": "{key}: '{input}' is not one of {expected}",
    "model_type": "{key}: must be a mapping of settings, not {input!r}",
    "model_attributes_type": "{key}: must be a mapping of settings, not {input!r}",
    "dict_type": "{key}: must be a mapping of settings, not {input!r}",
    "list_type": "{key}: must be a list, not {input!r}",
    "too_short": "{key}: must have at least {entries}",
    "value_error": "{key}: {error}",
}
_PLAIN = (
    (r", (unable to|got a number).*", ""),
    ("^Value error, ", ""),
    (r"^\w+ should", "must"),
    ("^Input is not a valid path for .*", "must be a path"),
    ("less than or equal to", "at most"),
    ("greater than or equal to", "at least"),
    ("a valid integer", "a whole number"),
    ("a valid ", "a "),
)
_NO_TAGS: Mapping[str, str] = {}
_ANY_OTHER = "{key}: {message}, not {input!r}"


@dataclass(frozen=True, slots=True)
class Mistake:
    """The first mistake that pydantic found in foreign data, without the value. `str`: one sentence with the key."""

    key: str  # dotted; empty if the whole value is wrong
    message: str

    @classmethod
    def first(cls, errors: Sequence[Any], root: str = "", known: Collection[str] = ()) -> Mistake:
        """The first of pydantic's `errors`, below the key `root`; `known`: the allowed keys."""
        error = errors[0]
        key = ".".join(map(str, ([root] if root else []) + list(error["loc"])))
        if error["type"] == _UNKNOWN and known:
            return cls(brief(key), f"there is no such key; allowed: {', '.join(known)}")
        return cls(brief(key), brief(plainly(error["msg"])))

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message

    @property
    def invalid(self) -> str:
        """The mistake as the predicate of a sentence about a file."""
        return f"is not valid{f' at {self.key}' if self.key else ''}: {self.message}"


def first_mistake(error: ValidationError, raw: Mapping[str, Any], model: type[BaseModel]) -> str:
    """The first mistake as `key.path: what is wrong`; unknown keys come first, since they may explain others."""
    return all_mistakes(error, raw, model)[0]


def all_mistakes(
    error: ValidationError,
    raw: Mapping[str, Any],
    model: type[BaseModel],
    tags: Mapping[str, str] = _NO_TAGS,
) -> list[str]:
    """All mistakes as `key.path: what is wrong`, unknown keys first, with a similar key of `model` suggested.

    A missing key is reported together with an unknown one, which is probably its misspelling. `tags`: allowed values of
    a key that selects the kind of a mapping, if pydantic does not give them.
    """
    mistakes = error.errors(include_url=False)
    unknown = [one for one in mistakes if one["type"] == _UNKNOWN]
    missing = {one["loc"][:-1]: one for one in reversed(mistakes) if one["type"] == "missing"}
    told, explained = [], []
    for one in unknown:
        beside = missing.get(one["loc"][:-1])
        meant = _did_you_mean(one["loc"], model)
        if beside is not None:
            explained.append(beside["loc"])
            meant = f"; {_dotted(beside['loc'], raw)} is missing"
        told.append(brief(f"{_dotted(one['loc'], raw)}: there is no such key{meant}", _LONGEST_CHARACTERS))
    others = (one for one in mistakes if one["type"] != _UNKNOWN and one["loc"] not in explained)
    return list(dict.fromkeys([*told, *(_sentence(one, raw, tags) for one in others)]))


def _sentence(mistake: ErrorDetails, raw: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    context = mistake.get("ctx", {})
    tag = str(context.get("discriminator", "")).strip("'")
    told = _SENTENCES.get(mistake["type"], _ANY_OTHER).format(
        key=_dotted(mistake["loc"], raw),
        input=mistake["input"],
        message=plainly(mistake["msg"]),
        expected=context.get("expected"),
        error=context.get("error"),
        tag=tag,
        found=context.get("tag"),
        entries="one entry" if (least := context.get("min_length")) == 1 else f"{least} entries",
        tags=str(context.get("expected_tags", tags.get(tag, "those that the example shows"))).replace("'", ""),
    )
    return brief(told.removeprefix(": "), _LONGEST_CHARACTERS)  # a mistake of the whole mapping names its keys itself


def plainly(message: str) -> str:
    """Pydantic's message as the predicate of a sentence: `must be at most 65535`."""
    for pattern, words in _PLAIN:
        message = re.sub(pattern, words, message)
    return message[0].lower() + message[1:]


def _did_you_mean(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """`; did you mean 'pin'?` if a similar key is allowed there, else empty."""
    types: list[Any] = [model]
    for step in location[:-1]:
        types = [inner for one in types for inner in _below(one, step)]
    models = [found for one in types for found in _models_in(one)]
    allowed = sorted({field.alias or name for one in models for name, field in one.model_fields.items()})
    near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _below(annotation: Any, step: int | str) -> list[Any]:
    """The types one step down a location: of a field, of an entry of a list or mapping, or of a tagged union."""
    if get_origin(annotation) in {list, dict}:
        return [get_args(annotation)[-1]]
    if not _is_model(annotation):
        return [inner for part in get_args(annotation) for inner in _below(part, step)]
    fields = annotation.model_fields
    if step in fields:
        return [fields[step].annotation]
    return [annotation] if any(step in get_args(field.annotation) for field in fields.values()) else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if _is_model(annotation):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _dotted(location: tuple[int | str, ...], raw: Mapping[str, Any]) -> str:
    """`experts.coder.pin` for ('experts', 2, 'vllm', 'pin'): steps that are not in the file are left out.

    Such steps are pydantic's names of union members: their tag (`engine`, `kind`) or type.
    """
    parts: list[str] = []
    node: Any = raw
    for before, step in zip((None, *location), location, strict=False):
        if isinstance(node, list) and isinstance(step, int):
            node = node[step]
            parts.append(str(node.get("name", step)) if isinstance(node, dict) else str(step))
        elif step == "[key]":  # the key before it is wrong
            continue
        elif isinstance(before, int) and isinstance(node, dict) and step == node.get("engine"):
            continue  # a kind may have the name of one of its keys
        elif isinstance(node, dict) and (step in node or step not in {node.get("engine"), node.get("kind")}):
            parts.append(str(step))
            node = node.get(step)
    return ".".join(parts)
