"""Entry point of `coe-train` and `python -m router_training`."""

import sys
from io import TextIOWrapper

from coe_server.system.interruption import quiet_interruption


def main() -> None:
    """Run the command line. Imports happen inside, where Ctrl-C is handled."""
    with quiet_interruption():
        from typer.main import get_command  # noqa: PLC0415 - a tenth of a second

        from router_training.cli import app  # noqa: PLC0415 - most of a second

        command = get_command(app)
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal cannot encode must not fail the command
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    command(prog_name="coe-train")


if __name__ == "__main__":
    main()
