"""Asks pip-audit for known vulnerabilities of what lock files pin: audit.py PIP_AUDIT LOCK...

Exit code 0: each package was looked up and none has any. 1: some have. 3: not every package could be looked up, which
is no all-clear: without a network, or behind a mirror of the index that has no such data.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FOUND, NOT_CHECKED = 1, 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """The exit code, and the lines to print."""

    code: int
    lines: tuple[str, ...]


def main() -> None:
    """Print the verdict on each lock file; the exit code is the worst of them."""
    pip_audit, *locks = sys.argv[1:]
    verdicts = [verdict(lock, *answer(pip_audit, lock)) for lock in locks]
    for one in verdicts:
        print(*one.lines, sep="\n")
    codes = {one.code for one in verdicts}
    sys.exit(FOUND if FOUND in codes else max(codes, default=0))


def answer(pip_audit: str, lock: str) -> tuple[str, str]:
    """pip-audit's report on a lock file, and its error output."""
    command = (pip_audit, "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json")
    done = subprocess.run([*command, "--requirement", lock], capture_output=True, text=True, check=False)
    return done.stdout, done.stderr


def verdict(lock: str, report: str, complaints: str) -> Verdict:
    """The verdict of a report. A lock file without a report, or with skipped packages, counts as not checked."""
    try:
        packages: Sequence[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = complaints.strip().rpartition("\n")[2] or "pip-audit printed nothing"
        return Verdict(NOT_CHECKED, (f"{lock}: not checked, the database cannot be reached: {why}",))
    skipped = [one for one in packages if "skip_reason" in one]
    lines = [
        f"{lock}: {one['name']} {one['version']}: {known['id']}, fixed in {', '.join(known['fix_versions']) or 'none'}"
        for one in packages
        for known in one.get("vulns", ())
    ]
    if lines:
        return Verdict(FOUND, tuple(lines))
    if skipped or not packages:
        count = f"{len(skipped)} of {len(packages)} packages not checked"
        return Verdict(NOT_CHECKED, (f"{lock}: {count}, the database has no data on them",))
    return Verdict(0, (f"{lock}: {len(packages)} packages, none with a known vulnerability",))


if __name__ == "__main__":
    main()
