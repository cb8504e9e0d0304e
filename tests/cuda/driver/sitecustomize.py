"""Loaded by Python as it starts, where this folder is on PYTHONPATH: the pretend machine's files below /proc.

NVIDIA_PRETEND_PROC names a folder; what is in it is read in the place of the file of that name in /proc.
"""

import io
import os
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("NVIDIA_PRETEND_PROC")
if FOLDER is not None:
    REAL = io.open

    def opened(file: Any, *how: Any, **more: Any) -> Any:
        inside = str(file).removeprefix("/proc/")
        pretended = Path(str(FOLDER), inside)
        is_there = inside != str(file) and os.path.exists(pretended)
        return REAL(pretended if is_there else file, *how, **more)

    io.open = opened
