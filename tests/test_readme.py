"""What the README says is there is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from coe_server.cli import app as coe
from coe_server.config.schema import load_config
from router_training.cli import app as coe_train
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert {"demo", "test", "serve"} <= named <= targets


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`?(coe(?:-train)? [a-z]+)", README))))
def test_every_command_exists(command):
    program, word = command.split()
    done = subprocess.run(
        [Path(sys.executable).with_name(program), word, "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"README names `{command}`: {done.stderr}"


def test_the_configuration_it_shows_is_valid(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        lines = block.splitlines()
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        path = tmp_path / "serve.yaml"
        path.write_text("\n".join(line[indent:] for line in lines))
        assert load_config(path).experts


def test_every_endpoint_it_lists_is_served():
    served = " ".join(path.read_text() for path in (ROOT / "coe_server/http").rglob("*.py"))
    endpoints = re.findall(r"`(?:GET|POST) (/[a-z0-9/{}]+)", README)
    assert len(endpoints) >= 7
    for endpoint in endpoints:
        short = endpoint.removeprefix("/admin").removeprefix("/v1")  # routers have their prefix said once
        assert f'"{endpoint}"' in served or f'"{short}"' in served, endpoint


def test_every_file_on_its_map_exists():
    file_map = README.split("## File map")[1].split("```")[1]
    folders = re.findall(r"^(?:  )?([a-z_]+/)", file_map, re.MULTILINE)
    assert {"configs/", "coe_server/", "routing/", "router_training/", "demo/", "tests/"} <= set(folders)
    for folder in folders:
        assert (ROOT / folder).is_dir() or (ROOT / "coe_server" / folder).is_dir(), folder


def test_every_command_and_every_page_of_the_operator_is_in_its_tables():
    commands = {
        f"{program} {name}"
        for program, app in (("coe", coe), ("coe-train", coe_train))
        for name in typer.main.get_command(app).commands
    }
    rows = re.findall(r"^\| (`coe.*?) \|", README, re.MULTILINE)
    told = set()
    for row in rows:
        first, *others = re.findall(r"`(?:coe-train |coe )?(?:[a-z]+)[^`]*`", row)
        program = first.strip("`").split()[0]
        told |= {f"{program} {first.strip('`').split()[1]}"} | {
            f"{program} {one.strip('`').split()[-1]}" for one in others
        }
    assert commands <= told
    pages = {path for text in (ROOT / "coe_server/http").rglob("*.py") for path in _admin_pages(text.read_text())}
    assert len(pages) >= 5
    assert all(f"`GET {page}`" in README for page in pages)


@pytest.mark.parametrize("app", [coe, coe_train])
def test_every_command_has_a_panel_and_an_example_and_names_its_file_in_capitals(app):
    for name, command in _commands(app):
        assert "Example" in (command.help or ""), name
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        assert all((one.metavar or one.name).isupper() or "[" in (one.metavar or "") for one in arguments), name
    for name, command in typer.main.get_command(app).commands.items():
        assert command.rich_help_panel, name


def _commands(app):
    for name, command in typer.main.get_command(app).commands.items():
        yield from getattr(command, "commands", {name: command}).items()


def _admin_pages(text):
    prefix = "/admin" if 'prefix="/admin"' in text else ""
    found = (prefix + path for path in re.findall(r'\.get\("(/[a-z/]+)"', text))
    return {path for path in found if path.startswith("/admin/")}
