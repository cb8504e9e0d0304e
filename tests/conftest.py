"""Fixtures of all tests (the repository's root, vLLM's environment), and the order in which tests run."""

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


LONGEST = (  # by measured processor time
    *("tests/test_end_to_end.py", "tests/engines/vllm/test_real.py", "tests/engines/vllm/test_wide.py"),
    "tests/engines/vllm/test_adapters_real.py",
    *("tests/cluster/test_with_vllm.py", "tests/cuda/", "tests/test_faults.py"),
    *("tests/test_killed_server.py", "tests/page/test_page.py", "tests/docs/test_train_your_own.py"),
    *("tests/test_cli.py", "tests/training/classifier/test_discovery.py", "tests/docs/test_guides.py"),
    *("tests/engines/vllm/test_engine.py", "tests/http/test_whose_failure.py", "tests/http/test_failure.py"),
    *("tests/training/test_fit.py", "tests/training/test_any_data.py", "tests/training/test_feedback.py"),
    *("tests/training/test_remap.py", "tests/training/data/test_embeddings.py"),
    *(
        "tests/http/bodies/test_coded_bodies.py",
        "tests/training/classifier/test_logistic.py",
        "tests/http/test_openapi.py",
    ),
    *("tests/engines/test_command_engine.py", "tests/training/test_collect.py", "tests/test_reload.py"),
)


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no worker still runs one after the others have finished."""
    items.sort(key=lambda item: next((at for at, name in enumerate(LONGEST) if item.nodeid.startswith(name)), 99))


@pytest.hookimpl(optionalhook=True)  # only with pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Each file runs in one process; so do all files that use vLLM's rules, whose import takes 20 s."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415  only with pytest-xdist

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "tests/cuda" if nodeid.startswith("tests/cuda/") else super()._split_scope(nodeid)

    return ByFile(config, log)
