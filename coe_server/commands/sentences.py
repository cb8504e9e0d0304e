"""How a command ends when something is wrong: one sentence on standard error and an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from coe_server.errors import ArtifactError, CoeError, ConfigError, DatasetError
from coe_server.visible import visible_lines


@contextmanager
def mistakes_as_sentences() -> Iterator[None]:
    """Exit code 2 for a mistake in what was given, 1 for anything else we name or the file system refuses."""
    try:
        yield
    except (ConfigError, ArtifactError, DatasetError) as error:
        _tell(error)
        raise typer.Exit(2) from error
    except CoeError as error:
        _tell(error)
        raise typer.Exit(1) from error
    except BrokenPipeError:  # whoever read our output has enough: the command ends without a word
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _tell(f"{where}{error.strerror or error}")
        raise typer.Exit(1) from error


def _tell(told: object) -> None:
    """The one line a person needs, whatever the log's settings; it may quote a server's words."""
    print(visible_lines(f"coe: {told}"), file=sys.stderr)  # noqa: T201
