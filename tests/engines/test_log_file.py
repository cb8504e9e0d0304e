"""An engine's log: what is kept and which lines are shown."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from coe_server.engines.keeper import DROPPED, LONGEST_BYTES, shorten
from coe_server.engines.log_file import fresh_log, last_lines, log_end, open_log, previous_log

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


def test_of_a_log_that_is_long_the_next_start_keeps_the_newest_half(tmp_path: Path) -> None:
    log = fresh_log(tmp_path, "french")
    log.write_bytes(b"".join(b"line %010d\n" % number for number in range(LONGEST_BYTES // 16)))
    log = fresh_log(tmp_path, "french")
    before = previous_log(log)
    assert log.read_bytes() == b""
    assert 0.99 * LONGEST_BYTES // 2 < before.stat().st_size <= LONGEST_BYTES // 2
    lines = before.read_bytes().splitlines()
    assert lines[0] + b"\n" == DROPPED
    assert lines[-1] == b"line %010d" % (LONGEST_BYTES // 16 - 1)
    assert {len(line) for line in lines[1:]} == {len("line 0000000000")}, "it begins with a whole line"


def test_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    assert fresh_log(tmp_path, "french").stat().st_mode & 0o777 == 0o600


def test_a_log_is_never_seen_empty_while_it_is_shortened(tmp_path: Path) -> None:
    """A reader looks again and again while a writer appends and shortens."""
    log = fresh_log(tmp_path, "french")
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(last_lines(log))

    with open_log(log) as file:
        file.write(b"a line\n")
        reader = threading.Thread(target=look)
        reader.start()
        try:
            for _ in range(50):
                os.lseek(file.fileno(), 0, os.SEEK_END)
                file.write(b"another line\n" * 100_000)
                shorten(file.fileno(), 500_000)
        finally:
            done.set()
            reader.join()
    assert seen
    assert "(its log is empty)" not in seen


def test_the_end_of_a_log_is_its_last_lines_in_full(tmp_path: Path) -> None:
    log = tmp_path / "french.log"
    log.write_text(FAILED_START)
    assert log_end(log, 3) == [
        "(APIServer pid=6)     ^^^^^^^^^",
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.",
        "(APIServer pid=6) INFO shutting down",
    ]
    assert log_end(tmp_path / "nothing.log", 3) == []
    log.write_bytes(b"x" * 100 + b"\n" + b"y" * 1_000_000)
    assert sum(map(len, log_end(log, 1000))) <= 64 << 10


def test_a_secret_that_the_beginning_of_the_end_cuts_in_two_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "french.log"
    rest = "hello\n" + "x" * ((64 << 10) - len("hunter22\nhello\n") + 4) + "\n"
    log.write_text("an old line\nits key is hunter22\n" + rest)
    assert log_end(log, 1000, ["hunter22"])[0] == "hello"


def test_the_end_of_a_log_leaves_out_keys_and_prompts(tmp_path: Path) -> None:
    log = tmp_path / "french.log"
    shown = {
        "Authorization: Bearer abc.def": "Authorization: Bearer [left out]",
        "args: {'api_key': ['0123456789'], 'port': 8000}": "args: {'api_key': ['[left out]'], 'port': 8000}",
        "llama-server --api-key 0123456789abcdef --port 1": "llama-server --api-key [left out] --port 1",
        "HF_TOKEN=hf_0123456789abcdefghij": "HF_TOKEN=[left out]",
        "the value hunter22 of a variable": "the value [left out] of a variable",
        "Received request 7: prompt: 'who am I', params: ()": "Received request 7: prompt: [left out]",
        'body {"messages": [{"role": "user"}]}': 'body {"messages": [left out]',
        "prompt throughput: 5.1 tokens/s, max_tokens: 4096": "prompt throughput: 5.1 tokens/s, max_tokens: 4096",
    }
    log.write_text("\n".join(shown))
    assert log_end(log, 100, ["hunter22", "of"]) == list(shown.values())
