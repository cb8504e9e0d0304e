from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_server.errors import DatasetError
from router_training import in_silence
from router_training.collect.bars import SilentBars
from router_training.collect.recording import Answer, Failure, JudgeVerdict, Record, Recording
from router_training.collect.run import Files, collect
from tests.training.stand_in_endpoint import endpoint
from tests.training.test_collect import config, echo, files, written

texts = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates too: endpoints send anything
names = st.sampled_from(["a", "b"])
seconds = st.floats(0, 1e6)
answers = st.builds(
    Answer, names, names, names, texts, st.none() | st.integers(0), st.none() | texts, seconds, st.just(1)
)
verdicts = st.builds(
    JudgeVerdict, names, names, names, names, st.lists(texts, max_size=2).map(tuple), st.none() | texts, seconds
)
failures = st.builds(Failure, names, names, st.none() | names, names, texts, seconds, st.just(3))
records = st.lists(answers | verdicts | failures, max_size=8)


def found(recording: Recording, record: Record) -> Record | None:
    match record:
        case Answer():
            return recording.answer(record.prompt_id, record.expert, record.asked)
        case JudgeVerdict():
            return recording.verdict(record.prompt_id, record.expert, record.order, record.asked)
        case Failure():
            return recording.failure(record.prompt_id, record.expert, record.order, record.asked)


def record_all(path: Path, kept: list[Record]) -> Recording:
    recording = Recording(path)
    with recording.open():
        for record in kept:
            recording.append(record)
    return recording


@given(kept=records)
def test_what_is_recorded_is_read_back_and_the_last_of_a_kind_counts(
    kept: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("recording") / "raw.jsonl"
    writer = record_all(path, kept)
    reader = Recording(path)
    assert len(reader) == len(writer)
    for record in kept:
        assert found(reader, record) == found(writer, record)
    if kept:
        assert found(reader, kept[-1]) == kept[-1]


def test_an_answer_takes_the_place_of_a_failure(tmp_path: Path) -> None:
    failure = Failure("p", "a", None, "x", "HTTP 500", 0.1, 6)
    answer = Answer("p", "a", "x", "yes", 1, "stop", 0.1, 1)
    assert found(record_all(tmp_path / "raw.jsonl", [failure]), failure) == failure
    record_all(tmp_path / "raw.jsonl", [answer])
    assert found(Recording(tmp_path / "raw.jsonl"), failure) is None


def test_a_recording_cut_anywhere_is_completed_to_the_same_outcomes(tmp_path: Path) -> None:
    """A kill may leave any prefix: whole lines count, a piece of one is asked again, nothing else is."""
    where = files(tmp_path, 2)
    with endpoint(echo) as stand_in:
        collect(config(stand_in), where, SilentBars(), in_silence)
        whole, outcomes = where.raw.read_bytes(), where.out.read_bytes()
        for cut in range(0, len(whole), 7):
            where.raw.write_bytes(whole[:cut])
            stand_in.bodies.clear()
            collect(config(stand_in), where, SilentBars(), in_silence)
            assert where.out.read_bytes() == outcomes
            assert len(stand_in.bodies) == 4 - whole[:cut].count(b"\n")
            assert where.raw.read_bytes().count(b"\n") == 4
    assert len(written(where)) == 4


@pytest.mark.parametrize("tail", [b"", b'{"kin', b'{"kind": "answer", "text": "caf\xc3', b"\0" * 512])
def test_a_line_cut_short_is_cut_away_before_the_next_is_written(tmp_path: Path, tail: bytes) -> None:
    path, answer = tmp_path / "raw.jsonl", Answer("p", "a", "x", "café", 1, "stop", 0.1, 1)
    record_all(path, [answer])
    path.write_bytes(path.read_bytes() + tail)
    assert len(Recording(path)) == 1
    record_all(path, [replace(answer, prompt_id="q")])
    assert len(Recording(path)) == 2
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("line", ["not json", "[1]", '{"kind": "rumour"}', '{"kind": "answer"}', '{"prompt_id": "p"}'])
def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path, line: str) -> None:
    path = tmp_path / "notes.txt"
    for content in (line + "\n", line + "\n" + line, line)[: 2 if line.startswith('{"kind') else 3]:
        path.write_text(content)
        with pytest.raises(DatasetError, match="row 1: not a record"), Recording(path).open():
            pass
        assert path.read_text() == content


def test_damage_in_the_middle_is_said_with_its_row(tmp_path: Path) -> None:
    path, answer = tmp_path / "raw.jsonl", Answer("p", "a", "x", "yes", 1, "stop", 0.1, 1)
    record_all(path, [answer, answer])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[0][:20] + b"\n" + lines[1])
    with pytest.raises(DatasetError, match="row 2: not a record"):
        Recording(path)


def test_one_recording_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    with (
        Recording(path).open(),
        pytest.raises(DatasetError, match="another `coe-train collect`"),
        Recording(path).open(),
    ):
        pass


def test_raw_files_are_named_after_the_outcomes() -> None:
    assert Files.of([], Path("d/o.parquet"), None).raw == Path("d/o.raw.jsonl")
