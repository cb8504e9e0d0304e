"""The benchmark that reads another vLLM says what is gone and what reads otherwise."""

from pathlib import Path

import pytest

from benchmarks.vllm_surface import Folder, differences, surface

RULE = "def request_memory(snapshot, config):\n    {}\n    return {}\n"


@pytest.fixture
def make(tmp_path):
    def written(name, rule, sleep_path="/sleep", default="0.92"):
        folder = tmp_path / name
        files = {
            "v1/worker/utils.py": rule,
            "engine/arg_utils.py": f"class EngineArgs:\n    gpu_memory_utilization: float = {default}\n",
            "entrypoints/serve/dev/sleep/api_router.py": f'@router.post("{sleep_path}")\nasync def sleep(): ...\n',
            "envs.py": '{"VLLM_API_KEY": None}',
        }
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        return surface(Folder(folder))

    return written


def test_comments_and_docstrings_are_no_change(make):
    known = make("old", RULE.format("pass", "1"))
    assert list(differences(known, make("new", RULE.format("pass  # and why", "1")))) == []
    documented = 'def request_memory(snapshot, config):\n    """Why."""\n    pass\n    return 1\n'
    assert list(differences(known, make("other", documented))) == []


def test_a_rule_a_default_and_an_endpoint_that_changed_are_told(make):
    known = make("old", RULE.format("pass", "1"))
    told = list(differences(known, make("new", RULE.format("pass", "2"), "/nap", "0.9")))
    assert [line.split()[:3] for line in told] == [
        ["CHANGED", "code", "entrypoints/serve/dev/sleep/api_router.py"],
        ["CHANGED", "code", "v1/worker/utils.py"],
        ["GONE", "endpoint", "/sleep"],
        ["CHANGED", "flag", "gpu_memory_utilization"],
    ]


def test_what_is_kept_of_the_version_we_use_lacks_nothing():
    kept = (Path(__file__).parents[1] / "benchmarks/vllm_surface.json").read_text()
    assert '"gone"' not in kept
