"""Types of configuration values: amounts of memory, names, modalities, secrets, headers. Pure.

Messages about secrets and headers never show the value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from coe_server.errors import ConfigError


class Settings(BaseModel):
    """A mapping of settings: unknown keys are refused; immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Share(BaseModel):
    """A share of the available memory, `0 < fraction <= 1`."""

    model_config = ConfigDict(frozen=True)
    fraction: float


def parse_bytes(value: object) -> object:
    """`70GiB`, `512MiB`, `1048576` -> bytes, `80%` -> Share, `auto` -> None."""
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not an amount of memory ({_AMOUNTS})")
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[KMGT]?i?B)", value.strip())
    if match is None:
        raise ValueError(f"'{value}' is not an amount of memory ({_AMOUNTS})")
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if not 0 < number <= 100:
            raise ValueError(f"'{value}' is not between 0 and 100 %")
        return Share(fraction=number / 100)
    return int(number * _UNITS[unit])


_AMOUNTS = "70GiB, 512MiB, 80% or auto"
_LEAST_WITHOUT_UNIT = 1 << 10  # a smaller number was meant in another unit
_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


def parse_amount(value: object) -> object:
    """As `parse_bytes`, but neither negative nor a small number without a unit."""
    size = parse_bytes(value)
    if isinstance(size, int) and size < 0:
        raise ValueError(f"{value!r} is not an amount of memory ({_AMOUNTS})")
    if isinstance(value, int) and 0 < value < _LEAST_WITHOUT_UNIT:
        raise ValueError(f"{value} without a unit is {value} bytes; write the unit ({value}GiB)")
    return size


def parse_byte_count(value: object) -> object:
    """As `parse_bytes`, but a positive number of bytes: no share, no `auto`."""
    size = parse_bytes(value)
    if not isinstance(size, int) or size <= 0:
        raise ValueError(f"{value!r} is not a number of bytes (70GiB, 512MiB)")
    return size


def parse_amounts(value: object) -> object:
    """As `parse_amount`, or a list with one for each card."""
    return tuple(map(parse_amount, value)) if isinstance(value, list) and value else parse_amount(value)


Amount = Annotated[int | Share | None, BeforeValidator(parse_amount)]
Amounts = Annotated[int | Share | tuple[int | Share | None, ...] | None, BeforeValidator(parse_amounts)]
ByteCount = Annotated[int, BeforeValidator(parse_byte_count)]


def require_served_name(name: str) -> str:
    """Return the name. Raises ValueError with what is allowed."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is None:
        raise ValueError(
            f"{name!r} is not a name: up to 64 letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    return name


def require_alias(name: str) -> str:
    """Return the name, e.g. `openai/gpt-4o`, which clients may have built in. Raises ValueError."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", name) is None:
        raise ValueError(
            f"{name!r} is not an alias: up to 128 letters, digits, '.', '_', '-', ':', '/' and '@',"
            " starting with a letter or digit"
        )
    return name


ServedName = Annotated[str, AfterValidator(require_served_name)]
Alias = Annotated[str, AfterValidator(require_alias)]


Modality = Literal["image", "audio", "video", "file"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


def contradiction(vision: bool | None, modalities: Sequence[Modality] | None) -> str | None:
    """The contradiction between `vision` (the older key for images) and `modalities`; None if they agree."""
    if vision is None or modalities is None or vision == ("image" in modalities):
        return None
    listed = ", ".join(modalities) or "none"
    return f"vision is {str(vision).lower()}, but image is {'not ' if vision else ''}among the modalities ({listed})"


_VARIABLE_NAME = re.compile(r"[A-Z]{1,20}(_[A-Z0-9]{1,20})*|[a-z]{1,20}(_[a-z]{1,20})*")


def clean_secret(value: str | None, key: str, variable: str) -> str:
    """The value without surrounding blanks and newlines, which `echo KEY | base64` or an editor may add.

    Raises ConfigError with the setting's key and the variable's name, never with the value. A name that looks like a
    secret is not quoted: the key itself was written where the variable's name belongs.
    """
    if not value and _VARIABLE_NAME.fullmatch(variable) is None:
        raise ConfigError(f"{key}: is no environment variable that is set; put the secret into one and give its name")
    if not value:
        raise ConfigError(f"{key}: the environment variable '{variable}' is not set")
    stripped = value.strip()
    if not stripped:
        raise ConfigError(f"{key}: the environment variable '{variable}' is blank")
    if (fault := unfit_for_a_header(stripped) or _around_a_secret(stripped, key)) is not None:
        raise ConfigError(f"{key}: the environment variable '{variable}' has {fault}; set it to the key only")
    return stripped


def _around_a_secret(text: str, key: str) -> str | None:
    """What stands around a secret and is no part of it; None if nothing does. Only in `headers` a scheme belongs."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        return "quotation marks around it"  # docker's --env-file keeps them
    if key.endswith("_env") and text[:7].lower() == "bearer ":
        return "the word 'Bearer' before the key"
    return None


def unfit_for_a_header(text: str) -> str | None:
    """What makes a text invalid in an HTTP header, without quoting the text; None if it is valid.

    RFC 9110, section 5.5: no control characters; characters outside Latin-1 have no standard encoding.
    """
    if "\n" in text or "\r" in text:
        return "a line break, which is invalid in an HTTP header"
    if any(unicodedata.category(character) == "Cc" for character in text):
        return "a control character, which is invalid in an HTTP header"
    if any(ord(character) > 0xFF for character in text):
        return "a character outside Latin-1, which is invalid in an HTTP header"
    return None


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_VARIABLE = re.compile(r"\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_OF_THE_CONNECTION = (  # RFC 9110, section 7.6.1, and headers that frame or address a message
    frozenset(("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"))
    | frozenset(("proxy-authenticate", "proxy-authorization", "proxy-connection"))
    | frozenset(("host", "content-length", "expect"))
)
_OF_THE_BODY = frozenset(("content-encoding", "accept-encoding"))


def parse_request_headers(value: object) -> object:
    """Return the headers. Raises ValueError, naming the header, if one cannot be sent."""
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping of names to texts: {X-Name: value}")
    seen: set[str] = set()
    for name, content in value.items():
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not a header name: letters, digits and any of !#$%&'*+-.^_`|~")
        if (fault := _fault(name.lower(), content)) is not None:
            raise ValueError(f"'{name}' {fault}")
        if name.lower() in seen:
            raise ValueError(f"'{name}' occurs twice; header names ignore case")
        seen.add(name.lower())
    return value


RequestHeaders = Annotated[dict[str, str], BeforeValidator(parse_request_headers)]


def filled_in(headers: Mapping[str, str], secret: Callable[[str, str], str]) -> dict[str, str]:
    """The headers with every `{env.NAME}` replaced by `secret(header, NAME)`."""
    return {
        name: _VARIABLE.sub(lambda match, name=name: secret(name, match[1]), content.strip())  # type: ignore[misc]
        for name, content in headers.items()
    }


def variables_in(value: str) -> list[str]:
    """The names of the environment variables in a header's value."""
    return _VARIABLE.findall(value)


def _fault(name: str, content: object) -> str | None:
    if name in _OF_THE_CONNECTION:
        return "cannot be set: the HTTP client sets it for each connection; leave it out"
    if name in _OF_THE_BODY:
        return "cannot be set: the server controls content codings; leave it out"
    return _fault_of_value(content)


def _fault_of_value(content: object) -> str | None:
    if not isinstance(content, str):
        return "must have a text as its value; put the value in quotes"
    if "{env." in _VARIABLE.sub("", content):
        return "has '{env.' without a variable name; write {env.NAME}"
    if not content.strip():
        return "is empty; give it a value or leave it out"
    unfit = unfit_for_a_header(content.strip())
    return None if unfit is None else f"has {unfit}"
