"""The program `coe`, also run as `python -m coe_server`."""

from coe_server.system.interruption import quiet_interruption


def main() -> None:
    """Import everything here, where Ctrl-C is handled."""
    with quiet_interruption():
        from typer.main import get_command  # noqa: PLC0415 - a tenth of a second

        from coe_server.cli import app  # noqa: PLC0415 - most of a second

        command = get_command(app)
    command(prog_name="coe")


if __name__ == "__main__":
    main()
