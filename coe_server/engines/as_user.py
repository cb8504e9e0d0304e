"""Becomes a program as another user: started by a server that root started, for all that belongs to an engine.

    python -I -S as_user.py USER PROGRAM ARGUMENTS...

Standard library only, and nothing of ours. With the user go all of root's privileges; its groups come along (on some
systems a GPU's device files belong to one).
"""

from __future__ import annotations

import os
import pwd
import sys


def main() -> None:
    name, program = sys.argv[1], sys.argv[2:]
    user = pwd.getpwnam(name)
    os.initgroups(name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
