"""The time of one decision: text in, `RoutingDecision` out, one thread, default configuration.

Trains an artifact on ../shared/data (or takes --artifact) and routes prompts of several lengths, cut from the same
texts. Measured in the same run for comparison: scikit-learn's TF-IDF of words and characters alone, and aurelio's
semantic-router with the same categories if --semantic-router names a Python that can import it.

    python -m benchmarks.routing_speed --write [--semantic-router OTHER/bin/python]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.progress import track
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.document import document
from benchmarks.routing_quality import DATA, ROOT, SUITES
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
from router_training.fit import fit

LENGTHS = {"100 B": 100, "1 KB": 1024, "4 KB": 4096, "8,000 tokens (32 KB)": 32_768}
TEXTS = 50  # of each length
TIMES = 2000  # decisions timed at each length
UTTERANCES = 100  # of each category, for semantic-router

Timed = Callable[[Callable[[str], object], Sequence[str], int], tuple[float, float]]

ROOM = """
import json, re, sys
from pathlib import Path
from coe_server.routing.conversation import Conversation
from coe_server.routing.decision import Availability, RouteOptions
from coe_server.routing.router import Router
router = Router.load(Path(sys.argv[1]))
here = dict.fromkeys(router.expert_names, Availability("disk", 1.0))
for text in json.load(sys.stdin):
    router.route(Conversation.of_prompt(text), RouteOptions(objective=router.objectives[0]), here)
# not getrusage: its peak is that of the process which started this one, if that was larger
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
heavy = [name for name in ("torch", "sklearn", "scipy") if name in sys.modules]
print(json.dumps({"megabytes": peak, "heavy": heavy}))
"""


def main() -> None:
    """Print the table; with --write, also put it into the docs."""
    options = _options()
    if not DATA.is_dir():
        sys.exit(f"skipped: {DATA} is not there; the recorded outcomes are not part of the project")
    folder = options.artifact or _trained(options.suite)
    router = Router.load(folder)
    rows = pq.read_table(DATA / f"{options.suite}_dev.prompts.parquet", columns=["prompt", "category"]).to_pydict()
    asked = _cut("\n\n".join(rows["prompt"]))
    timed = partial(_timed, clock=time.process_time if options.processor_time else time.perf_counter)
    lines = ["| what | " + " | ".join(LENGTHS) + " |", "|---|" + "---|" * len(LENGTHS)]
    lines.append(
        _line("`Router.route`, p50 (p99) ms", {name: _routed(router, texts, timed) for name, texts in asked.items()})
    )
    lines.append(_line("scikit-learn TF-IDF of words and characters alone", _vectorised(rows["prompt"], asked, timed)))
    if options.semantic_router is None:
        print("semantic-router is left out: --semantic-router names no environment", file=sys.stderr)
    else:
        lines.append(_line("semantic-router, TF-IDF encoder", _peer(options, rows, asked)))
    talks = [Conversation.of_prompt(text) for text in rows["prompt"]]
    lines += ["", *_sentences(router, folder, talks, rows["prompt"][:200])]
    command = f"`python -m benchmarks.routing_speed --suite {options.suite}`"
    clock = "milliseconds of processor time" if options.processor_time else "milliseconds"
    text = "\n".join(["## Routing speed", "", f"{command}: text in, decision out, one thread, {clock}.", "", *lines])
    print(text)
    if options.write:
        document("routing speed", text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="coe5", choices=list(SUITES))
    parser.add_argument("--artifact", type=Path, help="instead of training one")
    parser.add_argument("--semantic-router", metavar="PYTHON", help="an interpreter that can import semantic_router")
    parser.add_argument(
        "--processor-time", action="store_true", help="on a busy machine: do not count time spent waiting"
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    return parser.parse_args()


def _trained(suite: str) -> Path:
    folder = ROOT / "artifacts" / f"speed-{suite}"
    if not folder.is_dir():
        config = SUITES[suite].config("category")
        fit(config, folder, force=True, track=track)
    return folder


def _cut(text: str) -> dict[str, list[str]]:
    """Pieces of each length from evenly spread places."""
    pieces = {}
    for name, length in LENGTHS.items():
        starts = np.linspace(0, len(text) - length - 1, TEXTS).astype(int)
        pieces[name] = [text[start : start + length] for start in starts]
    return pieces


def _timed(
    act: Callable[[str], object], texts: Sequence[str], times: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """(p50, p99) in milliseconds, after a round to warm up."""
    for text in texts:
        act(text)
    seconds = []
    for number in range(times):
        began = clock()
        act(texts[number % len(texts)])
        seconds.append(clock() - began)
    p50, p99 = np.percentile(seconds, [50, 99])
    return 1000 * float(p50), 1000 * float(p99)


def _routed(router: Router, texts: Sequence[str], timed: Timed) -> tuple[float, float]:
    here = dict.fromkeys(router.expert_names, Availability("disk", 1.0))
    options = RouteOptions(objective=router.objectives[0])
    return timed(lambda text: router.route(Conversation.of_prompt(text), options, here), texts, TIMES)


def _vectorised(prompts: Sequence[str], asked: dict[str, list[str]], timed: Timed) -> dict[str, tuple[float, float]]:
    settings = {"sublinear_tf": True, "min_df": 2, "max_features": 50_000, "dtype": np.float32}
    words = TfidfVectorizer(ngram_range=(1, 2), **settings).fit(prompts)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), **settings).fit(prompts)

    def transform(text: str) -> object:
        return words.transform([text]), characters.transform([text])

    return {name: timed(transform, texts, TEXTS) for name, texts in asked.items()}


def _peer(
    options: argparse.Namespace, rows: dict[str, list[str]], asked: dict[str, list[str]]
) -> dict[str, tuple[float, float]]:
    routes: dict[str, list[str]] = {}
    for text, category in zip(rows["prompt"], rows["category"], strict=True):
        if len(routes.setdefault(category, [])) < UTTERANCES:
            routes[category].append(text)
    script = Path(__file__).with_name("semantic_router_peer.py")
    given = json.dumps({"routes": routes, "asked": asked, "processor_time": options.processor_time})
    done = subprocess.run(
        [options.semantic_router, str(script)], input=given, capture_output=True, text=True, check=True
    )
    return {name: (p50, p99) for name, (p50, p99) in json.loads(done.stdout).items()}


def _sentences(router: Router, folder: Path, talks: Sequence[Conversation], texts: Sequence[str]) -> list[str]:
    here = dict.fromkeys(router.expert_names, Availability("disk", 1.0))
    options = RouteOptions(objective=router.objectives[0])
    began = time.perf_counter()
    for talk in talks:
        router.route(talk, options, here)
    rate = len(talks) / (time.perf_counter() - began)
    command = [sys.executable, "-c", ROOM, str(folder)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    room = json.loads(done.stdout)
    heavy = ", ".join(room["heavy"]) or "no torch, scikit-learn or scipy"
    return [
        f"All {len(talks):,} prompts of the set one after the other: {rate:,.0f} decisions a second.",
        f"A process with the loaded router: {room['megabytes']:.0f} MB at its peak, {heavy} in it.",
    ]


def _line(what: str, found: dict[str, tuple[float, float]]) -> str:
    return f"| {what} | " + " | ".join(f"{p50:.2f} ({p99:.2f})" for p50, p99 in found.values()) + " |"


if __name__ == "__main__":
    main()
