"""`benchmarks/gpu_check.py` runs to its end on a pretend card: a whole server with three experts of which two fit."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cuda.cards import GIB, VARIABLE, Cards
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


def test_the_check_for_a_gpu_sees_what_it_expects_on_a_pretend_card(tmp_path, vllm_rules, make_model):
    cards = Cards.create(tmp_path / "cards.json", [24 * GIB])
    before = cards.reading(0).used
    driver, stand_in = Path(__file__).with_name("driver"), Path(__file__).with_name("stand_in.py")
    pretended = {VARIABLE: str(tmp_path / "cards.json"), "PYTHONPATH": f"{ROOT}:{driver}"}
    model = make_model("three gigabytes", 3 * GIB)
    given = ["--model", model, "--vllm", f"{sys.executable} {stand_in}", "--copy-gbps", "50", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu_check.py", *given],
        env={**os.environ, **vllm_rules, **pretended},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| three starts beside each other | all up at the first try |" in done.stdout
    assert "| answers before and after all moves | equal | equal | yes |" in done.stdout
    assert cards.reading(0).used == before
