"""API keys and their rights, stored as hashes in a file that `coe keys` writes. Does not depend on HTTP.

Keys are generated with 256 random bits, so SHA-256 is as safe as a slow hash.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from coe_server.config.mistakes import first_mistake
from coe_server.errors import ConfigError
from coe_server.system.files import private_folder, replacing

PREFIX = "coe-"
MOST_A_MINUTE = 1_000_000
MOST_WEIGHT = 1000.0
LARGEST_FILE_BYTES = 8 << 20  # about twenty thousand keys
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _require_digest(text: str) -> str:
    """Return the digest. Raises ValueError without quoting the text, which may be the key itself."""
    if re.fullmatch(r"[0-9a-f]{64}", text) is None:
        raise ValueError("is not the SHA-256 of a key, 64 hexadecimal digits; `coe keys add` writes it")
    return text


class Key(BaseModel):
    """A key's name, digest, rights and limits; None means no limit. The key itself is not stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    sha256: Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True), AfterValidator(_require_digest)]
    created: date | None = None
    admin: bool = False
    scrape: bool = False  # may only GET /metrics
    node: bool = False  # a front's key on a node: /v1 and /node, nothing else
    requests_per_minute: int | None = Field(default=None, ge=1, le=MOST_A_MINUTE)
    concurrency: int | None = Field(default=None, ge=1)
    max_fan_out: int | None = Field(default=None, ge=1)  # answers per request
    priority: bool = False  # may ask for `coe.priority: high`; an admin key may, too
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT, allow_inf_nan=False)  # for its share of the queues
    experts: frozenset[str] | None = None
    objectives: frozenset[str] | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.scrape and self.admin:
            raise ValueError(f"the key '{self.name}' is both admin and scrape; a scrape key opens /metrics alone")
        if self.node and (self.scrape or self.admin):
            raise ValueError(f"the key '{self.name}' is a node key, which opens /v1 and /node alone")
        return self


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: list[Key]


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys that are accepted."""

    keys: tuple[Key, ...] = ()
    _digests: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_digests", tuple(bytes.fromhex(key.sha256) for key in self.keys))

    def find(self, presented: str) -> Key | None:
        """The key that matches, or None. Compares with every key, each in constant time."""
        digest = sha256(presented.encode("utf-8", "replace")).digest()
        found = None
        for key, known in zip(self.keys, self._digests, strict=True):
            if hmac.compare_digest(digest, known):
                found = key
        return found

    def share(self, key: Key) -> float:
        """Its share of the queues: its weight divided by the sum of all weights."""
        return min(1.0, key.weight / max(sum(one.weight for one in self.keys), key.weight))

    @property
    def has_admin(self) -> bool:
        return any(key.admin for key in self.keys)

    def since(self, before: Keyring) -> dict[str, list[str]]:
        """The names of keys `added`, `removed` or `changed` (rights or digest) since `before`."""
        was, now = ({key.name: key for key in ring.keys} for ring in (before, self))
        return {
            "added": sorted(now.keys() - was.keys()),
            "removed": sorted(was.keys() - now.keys()),
            "changed": sorted(name for name in now.keys() & was.keys() if now[name] != was[name]),
        }


def new_key() -> str:
    """A new random key."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """The digest that is stored for a key."""
    return sha256(key.encode()).hexdigest()


def read_keys(file: Path) -> tuple[Key, ...]:
    """The keys in a file. Raises ConfigError if it is not a valid key file."""
    try:
        raw = json.loads(_text_of(file))
        if not isinstance(raw, dict):
            raise ConfigError(
                f"keys.file: {file} must be a mapping with the list `keys`; `coe keys add` creates such a file"
            )
        found = _KeyFile.model_validate(raw).keys
    except OSError as error:
        raise ConfigError(f"keys.file: {file} cannot be read ({error.strerror}); `coe keys add` creates it") from error
    except ValidationError as error:
        raise ConfigError(f"keys.file: {file}: {first_mistake(error, raw, _KeyFile)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"keys.file: {file} is not JSON: {error}") from error
    _refuse_twins(found, file)
    return tuple(found)


def write_keys(file: Path, keys: Iterable[Key]) -> None:
    """Replace the file atomically, readable by its owner only. Raises ConfigError if it cannot be written."""
    if file.is_symlink():
        raise ConfigError(f"keys.file: {file} is a symbolic link; give the path of its target")
    text = json.dumps({"keys": [_as_json(key) for key in keys]}, indent=1)
    try:
        private_folder(file.parent)
        with replacing(file) as out:
            out.write(text + "\n")
    except OSError as error:
        raise ConfigError(f"keys.file: {file} cannot be written ({error.strerror}); give another path") from error


def _as_json(key: Key) -> dict[str, object]:
    told = key.model_dump(mode="json", exclude_defaults=True)
    return {name: sorted(value) if isinstance(value, list) else value for name, value in told.items()}


def _text_of(file: Path) -> str:
    """The file's text. Raises ConfigError if it is not a regular file, too long, or writable by every user."""
    if file.exists() and not file.is_file():
        raise ConfigError(f"keys.file: {file} is not a regular file")
    with file.open("rb") as opened:
        if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & stat.S_IWOTH:
            raise ConfigError(f"keys.file: {file} can be written by every user of this machine; chmod 600 {file}")
        data = opened.read(LARGEST_FILE_BYTES + 1)
    if len(data) > LARGEST_FILE_BYTES:
        raise ConfigError(f"keys.file: {file} has more than {LARGEST_FILE_BYTES:,} bytes")
    return data.decode("utf-8-sig")


def _refuse_twins(keys: list[Key], file: Path) -> None:
    names: set[str] = set()
    digests: set[str] = set()
    for key in keys:
        if key.name in names or key.sha256 in digests:
            raise ConfigError(f"keys.file: {file}: the key '{key.name}' occurs twice")
        names.add(key.name)
        digests.add(key.sha256)
