"""A test that leaves a process behind fails with the process' name, and the process is ended."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.left_processes import children_of

ROOT = Path(__file__).resolve().parent.parent
CONFTEST = """
from tests.left_processes import LeftProcesses

def pytest_configure(config):
    config.pluginmanager.register(LeftProcesses(seconds_to_end=0.1))
"""
SHARED = """
import subprocess, sys
import pytest

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
ORPHAN = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=2).pid)"

def started():
    pid = subprocess.Popen(SLEEP).pid
    print(f"pid={pid}")

def orphaned():
    out = subprocess.run([sys.executable, "-c", ORPHAN, *SLEEP], stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"pid={out}")

@pytest.fixture(scope="module")
def forgetful():
    started()

@pytest.fixture(scope="module")
def careful():
    process = subprocess.Popen(SLEEP)
    yield
    process.kill()
    process.wait()
"""


def outcome(folder: Path, tests: str) -> tuple[str, list[int]]:
    """What a run of these tests says at its end, and the processes that they started."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")
    (folder / "test_it.py").write_text(SHARED + tests)
    words = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-c", "pytest.ini", "test_it.py"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    pids = list({int(line.removeprefix("pid=")) for line in done.stdout.splitlines() if line.startswith("pid=")})
    return done.stdout, pids


@pytest.mark.parametrize("way", ["started", "orphaned"])
def test_a_test_that_leaves_a_process_fails_and_the_process_ends(tmp_path, way):
    said, (pid,) = outcome(tmp_path, f"def test_one(): {way}()\ndef test_two(): pass\n")
    assert "2 passed, 1 error" in said
    assert "ERROR test_it.py::test_one - Failed: processes were left behind" in said.replace("at teardown of ", "")
    assert f"{pid} {sys.executable} -c import time; time.sleep(600)" in said
    assert not Path(f"/proc/{pid}").exists()


def test_a_test_that_fails_leaves_no_process(tmp_path):
    said, (pid,) = outcome(tmp_path, "def test_one():\n    started()\n    assert False\n")
    assert "1 failed, 1 error" in said
    assert not Path(f"/proc/{pid}").exists()


def test_a_process_that_a_longer_living_fixture_ends_is_allowed(tmp_path):
    said, _ = outcome(tmp_path, "def test_one(careful): pass\ndef test_two(careful): pass\n")
    assert "2 passed in" in said


def test_a_process_that_a_longer_living_fixture_forgets_fails_the_last_test_of_its_module(tmp_path):
    said, (pid,) = outcome(tmp_path, "def test_one(forgetful): pass\ndef test_two(forgetful): pass\n")
    assert "2 passed, 1 error" in said
    assert "ERROR test_it.py::test_two" in said
    assert not Path(f"/proc/{pid}").exists()


def test_what_a_test_starts_beside_a_fixture_of_the_module_is_looked_for_at_its_end_and_the_test_named(tmp_path):
    said, _ = outcome(tmp_path, "def test_one(careful): started()\ndef test_two(): pass\n")
    (pid,) = [int(line.removeprefix("pid=")) for line in said.splitlines() if line.startswith("pid=")][:1]
    assert "ERROR test_it.py::test_two" in said
    assert f"{pid} {sys.executable} -c import time; time.sleep(600) (started in test_one)" in said
    assert not Path(f"/proc/{pid}").exists()


def test_a_thread_that_ends_hides_no_child_of_the_others():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            threads = [threading.Thread(target=int) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    churn = threading.Thread(target=come_and_go)
    churn.start()
    try:
        assert all(child.pid in children_of(os.getpid()) for _ in range(500))
    finally:
        over.set()
        churn.join()
        child.communicate()
