"""The demo is a folder of scripts, not a package: its tests find the modules where the scripts do."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))
