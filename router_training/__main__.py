"""The program `coe-train`, which is `python -m router_training`, too."""

import sys
from io import TextIOWrapper

from coe_server.system.interruption import quiet_interruption


def main() -> None:
    """Everything is imported here, where Ctrl-C is taken care of."""
    with quiet_interruption():
        from typer.main import get_command  # noqa: PLC0415 - a tenth of a second

        from router_training.cli import app  # noqa: PLC0415 - most of a second

        command = get_command(app)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding does not have is no reason to fail
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    command(prog_name="coe-train")


if __name__ == "__main__":
    main()
