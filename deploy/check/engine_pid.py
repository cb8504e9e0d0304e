"""Prints the process id of an expert's engine, inside the service's container: engine_pid.py EXPERT"""

import sys
from pathlib import Path

for folder in Path("/proc").iterdir():
    if folder.name.isdigit():
        words = (folder / "cmdline").read_bytes().decode().split("\0")
        if (
            len(words) > 3
            and words[1].endswith("/vllm")
            and words[2] == "serve"
            and words[3].endswith(f"/{sys.argv[1]}")
        ):
            print(folder.name)
            sys.exit()
sys.exit(f"no engine of {sys.argv[1]} runs")
