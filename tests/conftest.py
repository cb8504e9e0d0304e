"""What every test may ask for: the repository's root and the environment that holds vLLM."""

import os
import sys
from pathlib import Path

import pytest

from tests.examples import register_profiles
from tests.left_processes import LeftProcesses

ROOT = Path(__file__).resolve().parent.parent

# Tests start hundreds of Python programs; without its byte code each of them would compile the whole package first.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config):
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):  # not where the workers are started
        config.pluginmanager.register(LeftProcesses())


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def vllm_environment():
    """The environment `make engines` creates; COE_TEST_VLLM names another one."""
    folder = Path(os.environ.get("COE_TEST_VLLM", ROOT / ".venv-vllm"))
    if not (folder / "bin/vllm").exists():
        pytest.skip(f"vLLM is not installed in {folder}: `make engines` installs it")
    return folder


register_profiles()


LONGEST = (  # by the processor time of each, as measured
    *("tests/test_end_to_end.py", "tests/engines/test_vllm_real.py", "tests/engines/test_vllm_wide.py"),
    *("tests/cuda/", "tests/test_faults.py"),
    *("tests/test_killed_server.py", "tests/page/test_page.py", "tests/docs/test_train_your_own.py"),
    *("tests/test_cli.py", "tests/training/classifier/test_discovery.py", "tests/docs/test_guides.py"),
    *("tests/engines/test_vllm_engine.py", "tests/http/test_whose_failure.py", "tests/http/test_failure.py"),
    *("tests/training/test_fit.py", "tests/training/test_any_data.py", "tests/training/test_feedback.py"),
    *("tests/engines/test_vllm_media.py", "tests/training/test_remap.py", "tests/training/data/test_embeddings.py"),
    *("tests/http/test_coded_bodies.py", "tests/training/classifier/test_logistic.py", "tests/http/test_openapi.py"),
    *("tests/engines/test_command_engine.py", "tests/training/test_collect.py", "tests/test_reload.py"),
)


def pytest_collection_modifyitems(items):
    """What takes longest goes first, so that no process is left with it when the others have nothing to do any more."""
    items.sort(key=lambda item: next((at for at, name in enumerate(LONGEST) if item.nodeid.startswith(name)), 99))


@pytest.hookimpl(optionalhook=True)  # where pytest-xdist is
def pytest_xdist_make_scheduler(config, log):
    """A file stays in one process, and so do all files that share vLLM's rules, which take 20 s to import."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415  only where it is

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "tests/cuda" if nodeid.startswith("tests/cuda/") else super()._split_scope(nodeid)

    return ByFile(config, log)
