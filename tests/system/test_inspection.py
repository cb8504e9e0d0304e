"""What another process of the same user can see of one that refuses to be looked into."""

import json
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_SECONDS
from tests.same_user import powerless

LOOKED_INTO = """
import subprocess, sys
from coe_server.system.process import refuse_inspection
if sys.argv[1] == "refuses":
    assert refuse_inspection()
subprocess.run([sys.executable, "-c", sys.argv[2]], check=True)
"""
LOOKER = """
import json, os
seen = []
for file in ("environ", "mem", "maps", "fd/1", "status", "cmdline"):
    try:
        os.close(os.open(f"/proc/{os.getppid()}/{file}", os.O_RDONLY | os.O_NONBLOCK))
        seen.append(file)
    except OSError:
        pass
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ("as it is", ["environ", "mem", "maps", "fd/1", "status", "cmdline"]),
        ("refuses", ["status", "cmdline"]),
    ],
)
def test_a_process_that_refuses_shows_no_memory_no_environment_and_no_files(tmp_path, how, seen):
    command = [*powerless(), sys.executable, "-c", LOOKED_INTO, how, LOOKER]
    with (tmp_path / "seen").open("wb") as output:
        subprocess.run(command, stdout=output, check=True, timeout=PATIENCE_SECONDS)
    assert json.loads((tmp_path / "seen").read_text()) == seen
