"""Text from outside as a part of HTML."""

from __future__ import annotations

import html

from coe_server.system.visible import visible


def escape(text: str) -> str:
    """Nothing in it is taken for markup, and nothing turns the direction of what follows."""
    return html.escape(visible(text))
