import pytest

from coe_server.errors import ConfigError, NothingToUndo
from coe_server.journal.steps import Step, Steps, read_steps, steps_as_json, write_steps

FIRST = Step(100.0, 100, "score", {"code": {"big": 0.05, "small": -0.05}})
SECOND = Step(200.0, 200, "score", {"code": {"big": 0.08, "small": -0.05}})


def test_steps_are_read_back_as_they_were_written(tmp_path):
    steps = Steps().and_then(FIRST).and_then(SECOND)
    write_steps(tmp_path / "state" / "learned.json", steps)
    found = read_steps(tmp_path / "state" / "learned.json")
    assert (found.table, found.number, [one.time for one in found.steps]) == (SECOND.table, 2, [100.0, 200.0])


def test_without_a_file_there_are_no_steps(tmp_path):
    assert read_steps(tmp_path / "learned.json").table == {}


def test_a_damaged_file_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "learned.json").write_text('{"steps": [{"time": "now"}]}')
    with pytest.raises(ConfigError, match="move it away"):
        read_steps(tmp_path / "learned.json")


def test_undoing_returns_to_the_table_before_and_its_ratings_no_longer_count(tmp_path):
    steps = Steps().and_then(FIRST).and_then(SECOND).without_last(250.0)
    assert (steps.table, steps.number) == (FIRST.table, 3)  # a version of its own
    assert [steps.counts(time) for time in (90.0, 100.0, 150.0, 250.0, 260.0)] == [True, True, False, False, True]
    write_steps(tmp_path / "learned.json", steps)
    assert not read_steps(tmp_path / "learned.json").counts(150.0)
    with pytest.raises(NothingToUndo):
        steps.without_last(300.0).without_last(400.0)


def test_what_each_step_moved_is_told_newest_first():
    newest, oldest = steps_as_json(Steps().and_then(FIRST).and_then(SECOND))
    assert newest["moved"] == [{"category": "code", "expert": "big", "before": 0.05, "after": 0.08}]
    assert [one["after"] for one in oldest["moved"]] == [0.05, -0.05]
