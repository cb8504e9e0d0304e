from __future__ import annotations

import io
import re

from rich.console import Console

from router_training.collect.bars import TerminalBars


def shown(is_terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120, color_system=None)
    with TerminalBars(console) as bars:
        bars.plan({"coder": 3, "judge": 4})
        for _ in range(3):
            bars.advance("coder")
        bars.plan({"judge": 2})
        bars.advance("judge")
        bars.say("judge: [given up]")
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is a StringIO


def test_a_terminal_sees_a_bar_for_each_target_and_one_for_everything() -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", shown(is_terminal=True))
    for name, done in (("coder", "3/3"), ("judge", "1/2"), ("everything", "4/5")):
        last = [line for line in plain.splitlines() if line.startswith(f"{name} ")][-1]
        assert f"{done} requests" in last
        assert "time left" in last


def test_a_log_sees_only_what_is_said() -> None:
    assert shown(is_terminal=False).split() == ["judge:", "[given", "up]"]
