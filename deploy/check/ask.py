"""Asks the composition one held-out question of each topic and checks the answer: ask.py KEY_FILE TOPIC..."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

QUESTIONS = Path(__file__).parents[2] / "demo/data/held_out.prompts.jsonl"
URL = "http://127.0.0.1:8080/v1/chat/completions"
TRIES = 5


def main() -> None:
    key = Path(sys.argv[1]).read_text().strip()
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    for topic in sys.argv[2:]:
        asked = [row for row in rows if row["category"] == topic][:TRIES]
        right = sum(ask(row["prompt"], row["answer"], topic, key) for row in asked)
        if right < TRIES - 1:  # the experts are right on most questions of their topics, not on all
            sys.exit(f"check: only {right} of {TRIES} answers on {topic} are right")


def ask(prompt: str, wanted: str, topic: str, key: str) -> bool:
    """True if the answer is right. Ends the check if another expert than the topic's answered."""
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 48}
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(URL, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        said = json.load(answer)["choices"][0]["message"]["content"]
        expert, reason, wait = (answer.headers[f"x-coe-{name}"] for name in ("expert", "reason", "wait-ms"))
    print(f"{prompt[:60]!r}: {said[:40]!r} ({expert}, {reason}, waited {float(wait):,.0f} ms)")
    if expert != topic:
        sys.exit(f"check: {expert} answered a question on {topic}")
    return bool(said == wanted)


if __name__ == "__main__":
    main()
