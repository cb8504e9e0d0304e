"""One version everywhere, and a workflow that makes a release of a tag: known without making one."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/release.yml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture
def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    return found


def test_the_workflow_follows_githubs_schema_and_a_made_up_key_does_not(tmp_path: Path) -> None:
    wrong = tmp_path / "release.yml"
    wrong.write_text(WORKFLOW.read_text().replace("runs-on:", "run-on:"))
    codes = []
    for file in (WORKFLOW, wrong):
        words = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", file]
        codes.append(subprocess.run(words, capture_output=True, timeout=PATIENCE_SECONDS, check=False).returncode)
    assert codes[0] == 0
    assert codes[1] != 0


def test_nothing_is_uploaded_before_the_tests_have_passed_and_the_tag_is_the_version(jobs: dict[str, Any]) -> None:
    assert set(jobs) == {"version", "test", "build", "image", "upload"}
    assert {"version", "test", "build", "image"} == set(jobs["upload"]["needs"])
    assert {"version", "test"} == set(jobs["image"]["needs"])
    assert "pyproject.toml" in str(jobs["version"]["steps"])


def test_only_the_jobs_that_write_may_write(jobs: dict[str, Any]) -> None:
    assert yaml.safe_load(WORKFLOW.read_text())["permissions"] == {"contents": "read"}
    writing = {name: job["permissions"] for name, job in jobs.items() if "permissions" in job}
    assert writing == {
        "image": {"contents": "read", "packages": "write"},
        "upload": {"contents": "write"},
    }


def test_its_commands_are_targets_and_files_of_the_repository(jobs: dict[str, Any]) -> None:
    commands = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) == {"dist"} <= targets
    assert (ROOT / ".ci/run").exists()
    assert ".ci/run" in commands
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert set(jobs["image"]["strategy"]["matrix"]["target"]) <= stages


@pytest.mark.parametrize(
    ("file", "kind"), [("compose.yaml", "gpu"), ("compose.cpu.yaml", "cpu"), ("compose.cluster.yaml", "cpu")]
)
def test_images_are_named_with_the_version_of_the_package(file: str, kind: str) -> None:
    assert f"image: coe-server:${{COE_VERSION:-{VERSION}}}-{kind}\n" in (ROOT / file).read_text()


def test_no_other_version_of_the_package_is_written_down() -> None:
    pattern = re.compile(r"coe[-_]server[:-](\d+\.\d+\.\d+)")
    for place in ("Dockerfile", "docs/upgrade.md", "docs/deploy.md", "CHANGELOG.md"):
        assert set(pattern.findall((ROOT / place).read_text())) <= {VERSION}, place


def test_the_page_on_upgrades_names_the_versions_of_the_code() -> None:
    from coe_server.journal.store import VERSION as JOURNAL  # noqa: PLC0415  beside what it is compared with
    from coe_server.routing.manifest import FORMAT_VERSION  # noqa: PLC0415

    text = (ROOT / "docs/upgrade.md").read_text()
    converted = f"the start converts versions 1 to {JOURNAL - 1} to {JOURNAL}"
    assert f"`state_directory/journal.sqlite3` | {JOURNAL}; {converted}" in text
    assert f"`router.artifact` | format {FORMAT_VERSION};" in text
