"""The package as it is installed: outside the checkout, from the wheel that the sdist makes."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import urllib.request
import venv
from ast import literal_eval
from pathlib import Path
from zipfile import ZipFile

import pytest

from coe_server.commands.example import Example, example_text
from tests.docs.reader import Reader, reading
from tests.docs.test_contributing import write_outcomes
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "configs",
    "coe_server",
    "router_training",
)
NOT_COPIED = shutil.ignore_patterns("__pycache__")


def run(*words: object, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a copy of the sources, and the wheel that is made of what is in it; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"ignore": NOT_COPIED} if copy is shutil.copytree else {}))  # type: ignore[operator]
    run(
        sys.executable,
        "-c",
        f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})",
        folder=source,
    )
    (sdist,) = folder.glob("*.tar.gz")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", folder, sdist, folder=folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and for all else what this Python has."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    words = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet")
    run(*words, "--no-index", "--no-deps", built[1], folder=folder)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (packages / "shared.pth").write_text("\n".join(dict.fromkeys(site.getsitepackages())) + "\n")
    return folder / "venv/bin"


def test_the_sdist_and_the_wheel_are_of_one_version_and_whole(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    assert sdist.name == f"coe_server-{VERSION}.tar.gz"
    assert wheel.name == f"coe_server-{VERSION}-py3-none-any.whl"
    with tarfile.open(sdist) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    assert {"setup.py", "configs/serve.yaml", "configs/train.yaml", "coe_server/cli.py"} <= inside
    with ZipFile(wheel) as opened:
        names = set(opened.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "coe_server", "router_training"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in tracked if (ROOT / name).exists()} - names == set(), "every file is in the wheel"
    assert {f"coe_server/examples/{one}.yaml" for one in Example} <= names


def test_the_explained_configurations_come_with_it(installed: Path, tmp_path: Path) -> None:
    printed = run(installed / "coe", "config", "--example", "train", folder=tmp_path)
    assert printed == (ROOT / "configs/train.yaml").read_text()
    program = "from coe_server.commands.example import Example, example_text; print([*map(example_text, Example)])"
    texts = [(ROOT / f"configs/{one}.yaml").read_text() for one in Example]
    assert literal_eval(run(installed / "python", "-c", program, folder=tmp_path)) == texts
    assert [*map(example_text, Example)] == texts, "in a checkout, too"


def test_it_says_its_version_and_where_it_is(installed: Path, tmp_path: Path) -> None:
    for program in ("coe", "coe-train"):
        assert run(installed / program, "--version", folder=tmp_path) == f"{program} {VERSION}\n"
    where = run(installed / "python", "-c", "import coe_server; print(coe_server.__file__)", folder=tmp_path)
    assert where.startswith(str(installed.parent))


def test_it_writes_a_configuration_trains_and_serves_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    with reading(tmp_path, lambda content, port: content) as reader:
        in_its_own_environment(reader, installed)
        reader.run("coe init --out first.yaml")
        reader.run("coe validate first.yaml")
        write_outcomes(tmp_path)
        (tmp_path / "train.yaml").write_text(
            "data: {prompts: [prompts.jsonl], outcomes: [outcomes.jsonl]}\n"
            "experts: [{name: a, active_params_b: 1}, {name: b, active_params_b: 1}]\n"
        )
        reader.run("coe-train fit train.yaml --out router")
        experts = "\n".join(
            f"  - {{name: {one}, engine: simulated, weights_bytes: 1MiB, start_seconds: 0}}" for one in "ab"
        )
        router = "router: {artifact: router}\nmemory: {device: 2MiB, host: 4MiB}"
        (tmp_path / "serve.yaml").write_text(f"http: {{port: {reader.port}}}\n{router}\nexperts:\n{experts}\n")
        reader.serve("coe serve serve.yaml")
        body = {"model": "auto", "messages": [{"role": "user", "content": "vyx wzyv xwv zywx vxz wvy"}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{reader.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            assert answer.headers["x-coe-expert"] == "b"
        with urllib.request.urlopen(f"http://127.0.0.1:{reader.port}/", timeout=PATIENCE_SECONDS) as page:
            assert b"<html" in page.read()


def in_its_own_environment(reader: Reader, programs: Path) -> None:
    del reader.environment["PYTHONPATH"]
    reader.environment |= {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(reader.folder)}


def test_no_message_tells_to_install_a_name_that_may_be_another_projects() -> None:
    for package in ("coe_server", "router_training"):
        for file in (ROOT / package).rglob("*.py"):
            assert not re.search(r"pip install(?! -)", file.read_text(encoding="utf-8")), file


def test_what_messages_name_as_the_explained_configuration_is_an_example() -> None:
    named = set()
    for package in ("coe_server", "router_training"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            named |= set(re.findall(r"coe config --example (\w+)", text))
            strings = re.findall(r'(?<!")"[^"\n]*configs/\w+\.yaml[^"\n]*"(?!")', text)
            assert strings == [], file
    assert named == set(Example)
