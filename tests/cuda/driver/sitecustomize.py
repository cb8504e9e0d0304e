"""The pretend machine's files in /proc. Python imports this module at its start if its folder is on PYTHONPATH.

NVIDIA_PRETEND_PROC names a folder, whose files are read instead of those of the same name in /proc.
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
