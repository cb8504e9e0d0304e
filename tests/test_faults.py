"""Many faults at once: afterwards no lease is held, no process is left, and every answer was for its own request."""

import subprocess
import sys

import pytest


def run(root, *words, timeout):
    artifact = root / "artifacts/demo-router"
    if not (artifact / "manifest.json").exists():
        pytest.skip("the demo's router has not been trained: `make demo` does")
    command = [sys.executable, root / "benchmarks/faults.py", "--artifact", artifact, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "Every promise was kept." in done.stdout


@pytest.mark.timeout(1200)
def test_a_few_clients_and_every_fault(root):
    run(root, "--seconds", "10", "--clients", "20", timeout=1100)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_fault_while_unsure_answers_are_handed_over(root):
    run(root, "--seconds", "10", "--clients", "20", "--handover", timeout=1100)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_two_hundred_clients_for_ten_minutes(root):
    vllm = root / ".venv-vllm/bin/vllm"
    real = ("--vllm", vllm) if vllm.exists() else ()
    run(root, "--seconds", "600", "--clients", "200", *real, timeout=1400)
