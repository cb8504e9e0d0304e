"""What was measured is there at the next start, for the same model, arguments and card alone."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest

from coe_server.engines.engine import Footprint
from coe_server.engines.vllm.engine import VllmEngine
from coe_server.engines.vllm.footprint import estimated_footprint, footprint_key, read_footprints, write_footprints
from tests.engines.vllm.test_command import launch

MEASURED = Footprint(device_awake=900, device_asleep=100, host_process=50, host_image=800)


def test_what_is_written_is_read_and_private(tmp_path: Path) -> None:
    file = tmp_path / "state/footprints.json"
    write_footprints(file, {"a": MEASURED})
    write_footprints(file, {"b": MEASURED._replace(device_awake=901)})
    assert read_footprints(file) == {"a": MEASURED, "b": MEASURED._replace(device_awake=901)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_file_is_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    file = tmp_path / "footprints.json"
    write_footprints(file, {str(number): MEASURED for number in range(250)})
    write_footprints(file, {"60": MEASURED})
    found = list(read_footprints(file))
    assert len(found) == 200
    assert found[-1] == "60"
    assert "0" not in found


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"a": 1}', '{"a": {"device_awake": -1}}', '{"a": {"device_awake": 1, "device_asleep": 2}}'),
        *('{"a": {"device_awake": 1.5}}', '{"a": {"device_awake": true}}', '{"a": {"surprise": 1}}', "[" * 100_000),
        '{"a": {"device_awake": 1}}' + " " * (1 << 20),
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "footprints.json"
    file.write_text(content)
    assert read_footprints(file) == {}
    assert "cannot read measured footprints" in caplog.text


def test_without_a_file_there_is_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_footprints(tmp_path / "footprints.json") == {}
    assert not caplog.text


def test_another_model_argument_or_card_is_measured_anew() -> None:
    here = launch(args={"max_model_len": 8192})
    changes = [{"model": "x"}, {"args": {}}, {"kv_cache_bytes": 1}, {"can_sleep": False}, {"platform": "cuda"}]
    keys = {footprint_key(dataclasses.replace(here, **change), 10, "card") for change in changes}  # type: ignore[arg-type]
    keys |= {footprint_key(here, 11, "card"), footprint_key(here, 10, "other"), footprint_key(here, 10, "card")}
    assert len(keys) == len(changes) + 3
    assert footprint_key(dataclasses.replace(here, name="renamed"), 10, "card") in keys


def test_an_engine_plans_with_what_an_earlier_start_measured() -> None:
    here = launch(model="a/b", weights_bytes=1000)
    assert VllmEngine(here).footprint == estimated_footprint(here)
    known = VllmEngine(dataclasses.replace(here, measured=MEASURED))
    assert known.footprint == MEASURED
    assert known.measured_footprint is None, "nothing was measured in this life"
