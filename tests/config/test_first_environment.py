"""What /proc shows of an environment after a value was overwritten in place."""

import subprocess
import sys

from tests.patience import PATIENCE_SECONDS

BLANKED = """
import os
from pathlib import Path
from coe_server.config.environment import blank_in_place
blank_in_place("A_SECRET")
blank_in_place("NOT_THERE")
assert os.popen("printenv A_SECRET").read().strip() == ""
print(Path("/proc/self/environ").read_bytes().replace(b"\\0", b"|").decode())
"""
TWICE = """
import ctypes, sys
def words(*texts): return (ctypes.c_char_p * (len(texts) + 1))(*[text.encode() for text in texts], None)
path = sys.executable
environment = words("A_SECRET=s3cret", "KEPT=as it is", "A_SECRET=s3cret too", *sys.argv[2:])
ctypes.CDLL(None).execve(path.encode(), words(path, "-c", sys.argv[1]), environment)
"""


def shown(*command, **environment):
    done = subprocess.run(
        [sys.executable, "-c", *command],
        env={"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_overwritten_value_is_shown_no_more_and_all_others_are():
    seen = shown(BLANKED, BEFORE="one", A_SECRET="s3cret", AFTER="two", NOT_A_SECRET="three")
    assert "s3cret" not in seen
    assert "A_SECRET=||||||" in seen
    for kept in ("BEFORE=one", "AFTER=two", "NOT_A_SECRET=three"):
        assert kept in seen


def test_a_variable_that_was_given_twice_is_overwritten_twice():
    seen = shown(TWICE, BLANKED, "PYTHONPATH=" + ":".join(sys.path))
    assert "s3cret" not in seen
    assert "KEPT=as it is" in seen
