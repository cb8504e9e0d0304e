"""Coming from another server: its right-hand columns name what there is, its configurations are taken."""

import json
import re

import pytest
import yaml
from typer.main import get_command

from coe_server.cli import app as coe
from coe_server.config.schema import load_config
from router_training.cli import app as coe_train
from tests.docs.reader import ROOT, blocks
from tests.http.server import running_server
from tests.http.test_api import simulated

GUIDE = ROOT / "docs/coming-from.md"
OURS = [
    code
    for line in GUIDE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| there")
    for code in re.findall(r"`([^`]+)`", line.strip("| ").split(" | ", 1)[1])
]
EXPLAINED = (ROOT / "configs/serve.yaml").read_text()
TOLD = EXPLAINED + (ROOT / "README.md").read_text() + (ROOT / "docs/operate.md").read_text()


def is_a_key(words):
    """Of serve.yaml: each word is a key there, under the one before."""
    tree = yaml.safe_load(EXPLAINED)
    for word in words:
        if isinstance(tree, list):
            tree = {key: value for one in tree for key, value in one.items()}
        if not isinstance(tree, dict) or word not in tree:
            return False
        tree = tree[word]
    return True


def commands():
    for program, app in (("coe", coe), ("coe-train", coe_train)):
        pending = [(program, get_command(app))]
        for name, command in pending:
            yield name, {option for parameter in command.params for option in parameter.opts}
            pending += [(f"{name} {word}", below) for word, below in getattr(command, "commands", {}).items()]


@pytest.fixture(scope="module")
def paths():
    with running_server({"a": simulated("a")}) as server:
        return {"/", *json.loads(server.ask("GET", "/openapi.json")[2])["paths"]}


@pytest.mark.parametrize("code", sorted(set(OURS)))
def test_what_it_is_called_here_is_there(code, paths):
    known = dict(commands())
    if code.startswith(("/", "GET /", "POST /")):
        assert code.split()[-1] in paths, code
    elif code.startswith("coe") and code != "coe":
        name = max((name for name in known if f"{code} ".startswith(f"{name} ")), key=len)
        rest = code.removeprefix(name).split()
        assert set(rest) - {"..."} <= known[name], code
        assert name not in ("coe", "coe-train")
    elif code.startswith(("{", "max_model_len")):
        described = yaml.safe_load(code.replace("...", "x"))
        assert isinstance(described, dict)
        assert all(is_a_key(["experts", key]) or is_a_key(["aliases", key]) for key in described), code
    elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)*(: \w+)?", code):
        words = code.partition(":")[0].split(".")
        assert is_a_key(words) or is_a_key(["experts", *words]) or code in TOLD, code
    else:
        assert code in TOLD or (ROOT / code).exists(), code


@pytest.mark.parametrize("block", [block for block in blocks(GUIDE) if block.language == "yaml"])
def test_its_configurations_are_taken(block, tmp_path):
    (tmp_path / "serve.yaml").write_text(block.text)
    assert load_config(tmp_path / "serve.yaml").experts
