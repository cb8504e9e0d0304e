"""What a process and its descendants hold in memory, read from /proc. Knows nothing of engines."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")


def process_tree(root: int) -> list[int]:
    """The process and its living descendants; empty if it is gone."""
    if not (_PROC / str(root)).exists():
        return []
    found = [root]
    for pid in found:  # grows while we walk
        found.extend(_children(pid))
    return found


def private_bytes(root: int) -> int:
    """`RssAnon` summed over the process tree: memory that is really held and no file or memfd stands behind."""
    return sum(_anonymous_bytes(pid) for pid in process_tree(root))


def session_members(session: int) -> list[int]:
    """Every living process of a session, wherever its parent went."""
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _session(pid) == session]


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            children.extend(int(child) for child in (task / "children").read_text().split())
    except OSError:
        pass  # it ended while we looked
    return children


def _anonymous_bytes(pid: int) -> int:
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith("RssAnon:"))
    return sum(int(fields[1]) * 1024 for fields in lines)  # the kernel's "kB" are 1024 bytes


def _session(pid: int) -> int | None:
    """None for a process that ended, a zombie included: only its parent can end that."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    state, _parent, _group, session = stat.rpartition(")")[2].split()[:4]  # the name may hold spaces and brackets
    return None if state == "Z" else int(session)
