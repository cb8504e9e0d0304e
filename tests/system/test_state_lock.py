"""A state directory has one server, which it names; no other command is kept out, and no lock outlives its holder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coe_server.cli import app
from coe_server.errors import CoeError
from coe_server.system.process import state_lock
from tests.test_cli import coe, config


@contextmanager
def program(*words, **options):
    """Runs until the end of the context and says one line when it is up."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, **options) as process:
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_second_server_is_refused_with_the_directory_the_process_and_a_way_out(tmp_path):
    with (
        state_lock(tmp_path / "state"),
        pytest.raises(CoeError) as refused,
        state_lock(tmp_path / "state"),
    ):
        pass
    assert str(refused.value) == (
        f"state_directory: {tmp_path}/state is used by another server (process {os.getpid()} on {os.uname().nodename});"
        " give this server its own state_directory, or stop the other server"
    )
    with state_lock(tmp_path / "state"), state_lock(tmp_path / "another"):
        pass


def test_the_command_says_so_and_may_be_tried_again_while_what_only_reads_goes_on(tmp_path):
    file = config(tmp_path)
    with state_lock(tmp_path / "state"):
        refused = coe("serve", file, "--port", "0")
        checked = CliRunner().invoke(app, ["validate", str(file)])
    assert refused.returncode == 1  # not 2: who holds it may leave it
    assert refused.stderr.count("\n") == 1
    assert f"state_directory: {tmp_path}/state is used by another server (process {os.getpid()} on " in refused.stderr
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["server.lock"]
    assert checked.exit_code == 0


def test_a_holder_that_is_killed_holds_nothing_and_the_next_is_named(tmp_path):
    holds = (
        "import sys; from pathlib import Path; from coe_server.system.process import state_lock\n"
        "with state_lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    with program(sys.executable, "-c", holds, tmp_path) as holder:
        with pytest.raises(CoeError, match=rf"\(process {holder.pid} on "), state_lock(tmp_path):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with state_lock(tmp_path), pytest.raises(CoeError, match=rf"\(process {os.getpid()} on "), state_lock(tmp_path):
            pass


def test_a_program_that_a_server_started_does_not_hold_it(tmp_path):
    with ExitStack() as running:
        with state_lock(tmp_path):
            running.enter_context(program("sh", "-c", "echo up; read line", close_fds=False))
        with state_lock(tmp_path):
            pass


@pytest.mark.parametrize("place", ["/proc/state", "a file/state"])
def test_where_nothing_can_be_written_nothing_is_held(tmp_path, caplog, place):
    (tmp_path / "a file").touch()
    with state_lock(tmp_path / place), state_lock(tmp_path / place):
        assert not Path(tmp_path, place).exists()
    assert caplog.messages == []


def test_a_file_system_without_locks_is_told_of_and_used(tmp_path, caplog, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with state_lock(tmp_path), state_lock(tmp_path):
        pass
    assert all(f"cannot lock {tmp_path}" in message for message in caplog.messages)
    assert len(caplog.messages) == 2
