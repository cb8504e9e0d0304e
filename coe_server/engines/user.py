"""The system user that runs the engines, if other than the server's."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path

from coe_server.errors import ConfigError

# A separate program, because it runs before the engine's and cannot import coe_server. Changing the user drops root's
# privileges; the user's groups are set (a GPU's device files may belong to one). Arguments: USER PROGRAM WORDS...
_BECOME_USER = """
import os, pwd, sys
name, program = sys.argv[1], sys.argv[2:]
user = pwd.getpwnam(name)
os.initgroups(name, user.pw_gid)
os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
os.execv(program[0], program)
"""
_ISOLATED = (sys.executable, "-I", "-S")  # ignores variables, user packages and site-packages


@dataclass(frozen=True, slots=True)
class EngineUser:
    """A user of this system."""

    name: str
    uid: int
    gid: int
    home: str

    @classmethod
    def called(cls, name: str) -> EngineUser:
        """The user `name`. Raises ConfigError if it does not exist, is root, or this process may not switch to it."""
        try:
            found = pwd.getpwnam(name)
        except KeyError as error:
            raise ConfigError(
                f"vllm.user: this system has no user '{name}'; create it (useradd), or leave the key out"
            ) from error
        if found.pw_uid == 0:
            raise ConfigError(f"vllm.user: '{name}' is root, which may read every file; set another user")
        if os.geteuid() != 0:
            raise ConfigError(
                f"vllm.user: only a server started by root can run engines as '{name}'; this one runs as user"
                f" {os.geteuid()}; leave the key out"
            )
        return cls(name, found.pw_uid, found.pw_gid, found.pw_dir)

    def owns(self, folder: Path) -> None:
        """Give the folder to this user."""
        os.chown(folder, self.uid, self.gid)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a program of this user that replace the server's."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}


def python_of(user: EngineUser | None) -> list[str]:
    """The command to run a Python script, isolated, as this user (None: the server's)."""
    return [*as_user(user.name if user else None), *_ISOLATED]


def as_user(name: str | None) -> list[str]:
    """The words before a command that run it as another user; empty for None."""
    return [] if name is None else [*_ISOLATED, "-c", _BECOME_USER, name]
