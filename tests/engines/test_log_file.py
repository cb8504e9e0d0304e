"""An engine's log: what is kept and which lines are shown."""

from __future__ import annotations

from pathlib import Path

from coe_server.engines.log_file import bound_log, fresh_log, last_lines

FAILED_START = """\
INFO 11-23 03:25:11 [api_utils.py:347] version 0.32.0
(EngineCore pid=7) ERROR 11-23 03:25:12 [core.py:1:2] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-23 03:25:12 [core.py:12]   File "/vllm/core.py", line 12, in run
(EngineCore pid=7) ERROR 11-23 03:25:12 [core.py:12]     raise ValueError(
(EngineCore pid=7) ERROR 11-23 03:25:12 [core.py:12] ValueError: max_model_len is too large
(APIServer pid=6) Traceback (most recent call last):
(APIServer pid=6)   File "/vllm/api.py", line 3, in main
(APIServer pid=6)     ^^^^^^^^^
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.
\x1b[1;36m(APIServer pid=6)\x1b[0m INFO shutting down
"""


def test_the_lines_that_tell_what_went_wrong_are_shown_and_tracebacks_are_not(tmp_path: Path) -> None:
    log = tmp_path / "french.log"
    log.write_text(FAILED_START)
    assert last_lines(log).splitlines() == [
        "(EngineCore pid=7) ERROR 11-23 03:25:12 [core.py:12] ValueError: max_model_len is too large",
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.",
    ]


def test_without_an_error_the_last_lines_are_shown_once_each(tmp_path: Path) -> None:
    log = tmp_path / "french.log"
    log.write_text("".join(f"line {n}\n\n" for n in range(20)) + "line 19\n")
    assert last_lines(log).splitlines() == [f"line {n}" for n in range(14, 20)]


def test_a_huge_or_broken_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "french.log"
    log.write_bytes(b"\xff" * 1_000_000 + b"\nMemoryError: no room\n")
    assert last_lines(log) == "MemoryError: no room"


def test_no_log_and_an_empty_log_are_said_to_be_empty(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "nothing.log") == "(its log is empty)"
    assert last_lines(fresh_log(tmp_path, "french")) == "(its log is empty)"


def test_each_start_begins_a_new_log_and_keeps_the_one_before(tmp_path: Path) -> None:
    for words in ("first", "second", "third"):
        log = fresh_log(tmp_path / "logs", "org/model")
        assert log.read_text() == ""
        log.write_text(words)
    files = {file.name: file.read_text() for file in (tmp_path / "logs").iterdir()}
    assert files == {"org%2Fmodel.log": "third", "org%2Fmodel.previous.log": "second"}


def test_a_log_that_grew_too_long_keeps_its_newest_lines_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = fresh_log(tmp_path, "french")
    with log.open("ab", buffering=0) as engine:
        engine.write(b"".join(b"line %04d\n" % number for number in range(1000)))
        bound_log(log, longest_bytes=10_000, kept_bytes=1_000)
        assert log.read_text().startswith("line 0000\n"), "10,000 bytes are not too many"
        engine.write(b"one more\n")
        bound_log(log, longest_bytes=10_000, kept_bytes=1_000)
        engine.write(b"the engine goes on\n")
    lines = log.read_text().splitlines()
    assert lines[0] == "(earlier lines were dropped)"
    assert lines[1].startswith("line 09"), "it begins with a whole line"
    assert lines[-3:] == ["line 0999", "one more", "the engine goes on"]
    assert log.stat().st_size < 1_100


def test_bounding_a_log_that_is_gone_does_nothing(tmp_path: Path) -> None:
    bound_log(tmp_path / "nothing.log")
    assert list(tmp_path.iterdir()) == []
