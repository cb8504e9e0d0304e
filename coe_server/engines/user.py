"""The system user under which engines run, if it is not the server's. Knows nothing of the programs it runs."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path

from coe_server.errors import ConfigError

# A program of its own, because it must run before the engine's and cannot import ours. With the user go all privileges
# of root; the user's groups stay (on some systems a GPU's device files belong to one). Arguments: USER PROGRAM WORDS...
_BECOME_USER = """
import os, pwd, sys
name, program = sys.argv[1], sys.argv[2:]
user = pwd.getpwnam(name)
os.initgroups(name, user.pw_gid)
os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
os.execv(program[0], program)
"""
_ISOLATED = (sys.executable, "-I", "-S")  # no variables, no user's packages, no site-packages


@dataclass(frozen=True, slots=True)
class EngineUser:
    """A user of this system."""

    name: str
    uid: int
    gid: int
    home: str

    @classmethod
    def called(cls, name: str) -> EngineUser:
        """Raises ConfigError if there is no such user, it is root, or this process may not start programs as it."""
        try:
            found = pwd.getpwnam(name)
        except KeyError as error:
            raise ConfigError(
                f"vllm.user: this system has no user '{name}'; make it (useradd), or leave it out"
            ) from error
        if found.pw_uid == 0:
            raise ConfigError(f"vllm.user: '{name}' is root, which may read every file; name another user")
        if os.geteuid() != 0:
            raise ConfigError(
                f"vllm.user: only a server that root starts can run engines as '{name}', this one runs as user"
                f" {os.geteuid()}; leave it out"
            )
        return cls(name, found.pw_uid, found.pw_gid, found.pw_dir)

    def owns(self, folder: Path) -> None:
        """Give the folder to this user."""
        os.chown(folder, self.uid, self.gid)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a program of this user, in place of the server's own."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}


def python_of(user: EngineUser | None) -> list[str]:
    """The command that runs a script of ours as the user, or as the server's own for None: Python, isolated."""
    return [*as_user(user.name if user else None), *_ISOLATED]


def as_user(name: str | None) -> list[str]:
    """What stands before a command to run it as another user; nothing for None."""
    return [] if name is None else [*_ISOLATED, "-c", _BECOME_USER, name]
