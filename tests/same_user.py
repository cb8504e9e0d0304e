"""Commands as another process of the same user: where tests run as root, without root's privileges."""

import os
import shutil
import subprocess

import pytest

POWERLESS = ("--bounding-set=-all", "--inh-caps=-all")


def powerless():
    """Words before a command that drop root's privileges; none if tests do not run as root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None or subprocess.run([setpriv, *POWERLESS, "true"], check=False).returncode != 0:
        pytest.skip("the tests run as root, who may read every process, and no setpriv can take that away")
    return [setpriv, *POWERLESS]
