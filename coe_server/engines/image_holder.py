"""Holds one expert's image, a memfd that the expert's engines open through /proc. Knows nothing of what is in it.

    python -I -S image_holder.py CONNECTION_FD NAME

Standard library only, and nothing of ours: its environment is empty, it has no other file open, so that an engine that
looks into it finds the image alone; the server cannot be looked into. It ends when the connection to the server closes
(the server is gone, even by SIGKILL, or wants the image no more). Every line that comes is answered with one, and one
comes first: the image's descriptor, its size in bytes, its seals. `renew` puts an empty memfd in the image's place.
"""

from __future__ import annotations

import fcntl
import os
import sys

_LONGEST_NAME = 200  # Linux allows 249 bytes, which only show in /proc
_PIECE_BYTES = 512


def main() -> None:
    connection, name = int(sys.argv[1]), sys.argv[2][:_LONGEST_NAME]
    os.closerange(3, connection)  # what the server's own parent left open comes along under uvloop
    os.closerange(connection + 1, os.sysconf("SC_OPEN_MAX"))
    image = _fresh(name)
    asked = b"state\n"  # the first answer comes unasked
    while asked:
        if b"renew" in asked:
            _renew(image, name)
        state = (image, os.fstat(image).st_size, fcntl.fcntl(image, fcntl.F_GET_SEALS))
        os.write(connection, b"%d %d %d\n" % state)
        asked = os.read(connection, _PIECE_BYTES)


def _renew(image: int, name: str) -> None:
    fresh = _fresh(name)
    os.dup2(fresh, image, inheritable=False)
    os.close(fresh)


def _fresh(name: str) -> int:
    return os.memfd_create(f"coe-image-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


if __name__ == "__main__":
    try:
        main()
    except OSError:  # the connection broke: the server is gone
        sys.exit(1)
