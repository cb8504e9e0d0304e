"""As whom engines run, where that is another user than the server's. Knows nothing of what they run."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path

from coe_server.errors import ConfigError

_AS_USER = Path(__file__).with_name("as_user.py")


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
            raise ConfigError(f"vllm.user: '{name}' is root, who may read everything; name another user")
        if os.geteuid() != 0:
            raise ConfigError(
                f"vllm.user: only a server that root starts can run engines as '{name}', this one runs as user"
                f" {os.geteuid()}; leave it out"
            )
        return cls(name, found.pw_uid, found.pw_gid, found.pw_dir)

    def owns(self, folder: Path) -> None:
        """From now on the folder is this user's."""
        os.chown(folder, self.uid, self.gid)

    @property
    def environment(self) -> dict[str, str]:
        """What a program of this user finds in place of the server's own."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}


def python_of(user: EngineUser | None) -> list[str]:
    """The words that start a script of ours as the user, None for the server's own: isolated, no site-packages."""
    as_user = [] if user is None else [sys.executable, "-I", "-S", str(_AS_USER), user.name]
    return [*as_user, sys.executable, "-I", "-S"]
