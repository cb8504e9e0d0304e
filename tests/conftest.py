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


def pytest_collection_modifyitems(items):
    """What takes longest goes first, so that no process is left with it when the others have nothing to do any more."""
    longest = (
        *("test_end_to_end.py", "test_vllm_real.py", "test_vllm_wide.py", "test_vllm_engine.py", "test_faults.py"),
        *("test_train_your_own.py", "test_guides.py", "test_misbehaving_experts.py", "test_failure.py"),
        *("test_openapi.py", "test_reload.py"),
        *("test_cli.py", "test_mapping.py", "test_logistic.py", "test_page.py"),
    )
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))
