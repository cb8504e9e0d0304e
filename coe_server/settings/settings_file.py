"""A YAML file of settings -> a mapping, or one sentence that says where it is wrong. Knows no particular setting."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from coe_server.errors import ConfigError
from coe_server.settings.bounded_yaml import UnusableYaml, parse_yaml
from coe_server.visible import brief

LONGEST_FILE_BYTES = 1 << 20


def read_settings_file(path: Path, explained_in: str) -> dict[str, Any]:
    """The settings in a file, whose keys `explained_in` explains. Raises ConfigError with one sentence."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE_BYTES + 1)  # a pipe has no size
        raw = parse_yaml(data.decode("utf-8"), LONGEST_FILE_BYTES, _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    except UnusableYaml as error:
        place = f", line {error.line}" if error.line is not None else ""
        raise ConfigError(f"{path}{place}: {brief(' '.join(str(error).split()))}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings (key: value); {explained_in} explains them")
    return raw


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML in which a key may stand once: of two, the first would be ignored without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key, count in Counter(map(str, keys)).items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
