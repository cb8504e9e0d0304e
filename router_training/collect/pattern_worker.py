"""Searches patterns in a process of its own, which can be killed: a pattern may take longer than the universe.

Runs as a script; JSON lines on stdin and stdout: {"pattern", "text"} -> {"found"} or {"error"}.
Imports nothing of ours.
"""

import json
import re
import sys


def main() -> None:
    """Until the other side closes."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            reply: dict[str, object] = {"found": re.search(asked["pattern"], asked["text"]) is not None}
        except (re.error, RecursionError, OverflowError) as error:
            reply = {"error": str(error)}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
