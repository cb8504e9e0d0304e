"""A process of the same user as another one, as the kernel sees it: root without its privileges is a user like any."""

import os
import shutil
import subprocess

import pytest

POWERLESS = ("--bounding-set=-all", "--inh-caps=-all")


def powerless():
    """Words before a command that take root's privileges away; none where tests do not run as root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None or subprocess.run([setpriv, *POWERLESS, "true"], check=False).returncode != 0:
        pytest.skip("the tests run as root, who may read every process, and no setpriv can take that away")
    return [setpriv, *POWERLESS]
