"""Engines as another user than the server's, which only root can arrange."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe_server.engines.user import EngineUser, as_user
from coe_server.engines.vllm.command import VllmLaunch, engine_environment
from coe_server.errors import ConfigError
from tests.patience import PATIENCE_SECONDS

OTHER = "nobody"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user")

# Both a server's and, with its first word, the engine's: what the other user's processes are and can open.
STORY = """
import asyncio, json, os, sys
from pathlib import Path
from coe_server.engines.user import EngineUser
from coe_server.engines.vllm.image import WeightImage
from coe_server.engines.kept_process import KeptProcess, make_run_directory

ENGINE = '''
import json, os, sys
def opens(path):
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return type(error).__name__
    return "opened"
image, private, run_directory = sys.argv[1:]
open(run_directory + "/written", "w").close()
capable = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")][:3]
print(json.dumps({"uid": os.getresuid(), "gid": os.getresgid(), "privileges": int("".join(capable), 16),
                  "image": opens(image), "private": opens(private), "keeper": os.stat(f"/proc/{os.getppid()}").st_uid}))
'''

async def main():
    user, folder = EngineUser.called("nobody"), Path(sys.argv[1])
    private = folder / "private"
    os.close(os.open(private, os.O_CREAT | os.O_WRONLY, 0o600))
    image = await WeightImage.held("french", user)
    run_directory = make_run_directory(user)
    command = [sys.executable, "-c", ENGINE, image.path, str(private), str(run_directory)]
    process = await KeptProcess.start(command, {}, run_directory, folder / "log", user)
    status = await process.over
    holder = os.stat(f"/proc/{image.pid}").st_uid
    await image.close()
    print(json.dumps({"status": status, "log": (folder / "log").read_text(), "left": run_directory.exists(),
                      "holder": holder}))

asyncio.run(main())
"""


@pytest.fixture
def folder_for_all() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def python_for_all() -> str:
    """A Python of this version that the other user can run, too; it may not look into root's home."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = [*as_user(OTHER), python, "-I", "-c", ""]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return python
    pytest.skip(f"user {OTHER} can run no Python of this version")


@as_root
def test_an_engine_its_keeper_and_its_images_holder_are_the_other_users(folder_for_all: Path) -> None:
    done = subprocess.run(
        [python_for_all(), "-c", STORY, folder_for_all],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if not path.startswith(sys.base_prefix))},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["status"], told["left"]) == (0, False), told["log"]
    other = pwd.getpwnam(OTHER)
    seen = json.loads(told["log"])
    assert told["holder"] == seen["keeper"] == other.pw_uid
    assert (seen["uid"], seen["gid"]) == ([other.pw_uid] * 3, [other.pw_gid] * 3)
    assert seen["privileges"] == 0
    assert (seen["image"], seen["private"]) == ("opened", "PermissionError")


@as_root
def test_a_user_that_is_not_there_or_is_root_is_refused_with_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^vllm\.user: this system has no user 'no-such-user'; create it"):
        EngineUser.called("no-such-user")
    with pytest.raises(ConfigError, match=r"^vllm\.user: 'root' is root, which may read every file; set"):
        EngineUser.called("root")


REFUSED = """
import os
from coe_server.engines.user import EngineUser
if os.geteuid() == 0:
    os.setuid(65534)
EngineUser.called("nobody")
"""


def test_only_root_can_run_engines_as_another_user() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False)
    assert "vllm.user: only a server started by root can run engines as 'nobody'; this one runs as user" in done.stderr


def test_an_engine_of_another_user_has_its_home() -> None:
    user = EngineUser("engines", 990, 990, "/var/lib/engines")
    inherited = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "PATH": "/bin"}
    launch = VllmLaunch("a", "/model", 1, Path("logs"), "cpu", inherited=inherited, user=user)
    environment = engine_environment(launch, Path("/run/x"))
    assert (environment["HOME"], environment["USER"], environment["LOGNAME"]) == (user.home, "engines", "engines")
    assert environment["PATH"] == "/bin"
