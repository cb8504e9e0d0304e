"""No value of a table is cut: whole columns are left out, those that tell least first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from rich.table import Table

from coe_server.commands.terminal import no_room_for, that_fits

COLUMNS = ("name", "seconds", "remark")


def table(columns: Sequence[str]) -> Table:
    made = Table(*columns, box=None)
    made.add_row(*("x" * 10 for _ in columns))
    return made


@pytest.mark.parametrize(
    ("width", "left_out"), [(40, []), (30, ["remark"]), (12, ["seconds", "remark"]), (3, ["seconds", "remark"])]
)
def test_columns_that_tell_least_make_room(width: int, left_out: list[str]) -> None:
    made, missing = that_fits(table, COLUMNS, ("remark", "seconds"), width)
    assert missing == left_out
    assert [column.header for column in made.columns] == [name for name in COLUMNS if name not in left_out]
    assert [left_out[0] in line for line in no_room_for(missing)] == [True] * bool(left_out)
