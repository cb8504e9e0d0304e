"""`python -m coe_server` is `coe`."""

from coe_server.cli import app

if __name__ == "__main__":
    app(prog_name="coe")
