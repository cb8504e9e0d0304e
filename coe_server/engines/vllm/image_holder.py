"""Holds one expert's image, a memfd that the expert's engines open through /proc.

    python -I -S image_holder.py CONNECTION_FD NAME

Imports only the standard library. Its environment is empty and no other file is open, so engines that inspect it
find only the image; they cannot inspect the server. It ends when the connection to the server closes: the server
ended, even by SIGKILL, or no longer needs the image. It sends one line at the start and one for each line received:
the image's descriptor, its size in bytes, its seals. `renew` replaces the image by an empty memfd.
"""

from __future__ import annotations

import fcntl
import os
import sys

_LONGEST_NAME = 200  # Linux allows 249 bytes; shown in /proc only
_PIECE_BYTES = 512


def main() -> None:
    connection, name = int(sys.argv[1]), sys.argv[2][:_LONGEST_NAME]
    os.closerange(3, connection)  # uvloop passes on descriptors that the server inherited
    os.closerange(connection + 1, os.sysconf("SC_OPEN_MAX"))
    image = _fresh(name)
    asked = b"state\n"  # the first answer is sent without a question
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
    except OSError:  # the server has ended
        sys.exit(1)
