"""How a command ends when something is wrong: one sentence and an exit code, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from coe_server.errors import CoeError
from coe_server.system.interruption import EXIT_INTERRUPTED
from coe_server.system.visible import visible

# what the extra `train` brings, by the names that are imported
EXTRA = {"matplotlib": "matplotlib", "pyarrow": "pyarrow", "scipy": "scipy", "sklearn": "scikit-learn"}
EXIT_WRONG_INPUT = 2


@contextmanager
def in_one_sentence(console: Console) -> Iterator[None]:
    """A mistake of the user's ends the command with a sentence, Ctrl-C without a word too many."""
    try:
        yield
    except CoeError as error:
        console.print(visible(str(error)), style="red", markup=False)
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        console.print(f"{EXTRA[package]} is not installed: pip install 'coe-server[train]'", style="red", markup=False)
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except BrokenPipeError:  # whoever read our output has enough: the command ends without a word
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        console.print(visible(f"{where}{error.strerror or error}"), style="red", markup=False)
        raise typer.Exit(EXIT_WRONG_INPUT) from error
    except KeyboardInterrupt as error:
        console.print("interrupted; nothing was written")
        raise typer.Exit(EXIT_INTERRUPTED) from error
