"""Sends the same requests to a bare `vllm serve` and to our server; keeps the comparison in docs/compatibility.md.

python -m benchmarks.compatibility [--vllm .venv-vllm/bin/vllm] [--node FOLDER]   (about five minutes on two cores)
python -m benchmarks.compatibility --program "llama-server -m {model} --port {port} --api-key {api_key}" --model FILE
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import openai

from benchmarks.compatibility.cases import CASES, Side
from benchmarks.compatibility.comparing import differences, is_refusal, joined, refusal, settled
from benchmarks.compatibility.servers import EMBEDDER, EXPERT, ROOT, bare, bare_program, ours, ours_program
from benchmarks.document import document

DOCUMENT = ROOT / "docs/compatibility.md"
NODE_SCRIPT = Path(__file__).with_name("node_clients.mjs")
# Requests that our server refuses before any engine sees them: only status and the client's exception are compared.
REFUSED_BY_US = frozenset(("an unknown model", "no messages"))
OF_PROGRAMS = ("chat", "chat, refused", "completions", "messages (Anthropic's client)")
NOT_ROUTED = frozenset(("embeddings", "tokens"))  # a model is named

Answers = dict[str, dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", type=lambda path: Path(path).absolute(), default=ROOT / ".venv-vllm/bin/vllm")
    parser.add_argument("--node", type=Path, help="a folder in which `npm i openai @anthropic-ai/sdk` was run")
    parser.add_argument("--judged", action="store_true", help="with a router that judges first tokens; is not kept")
    parser.add_argument("--program", help="a program, as `command` of an expert, in vLLM's place; needs --model")
    parser.add_argument("--model", type=Path, help="its model")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # and with it the servers
    if options.program:
        return of_a_program(options.program, options.model.resolve())
    with tempfile.TemporaryDirectory(prefix="coe-compatibility-") as folder:
        with bare(options.vllm, Path(folder)) as (generating, embedding):
            theirs = ask_all(lambda group: embedding if group == "embeddings" else generating, options.node)
        with ours(options.vllm, Path(folder), options.judged) as url:
            answers = ask_all(lambda _: url, options.node, "auto" if options.judged else EXPERT)
            if options.judged:
                print(judged_answers(url), file=sys.stderr)
    text, differing = report(answers, theirs, options.node is not None)
    if not DOCUMENT.exists():
        DOCUMENT.write_text("# Compatibility\n")
    if not options.judged:
        document("compatibility", text, DOCUMENT)
    print(text)
    return 1 if differing else 0


def of_a_program(command: str, model: Path) -> int:
    """The cases that a program for one model may support, beside the program by itself."""
    with tempfile.TemporaryDirectory(prefix="coe-compatibility-") as folder:
        with bare_program(command, model, Path(folder)) as url:
            theirs = ask_all(lambda _: url, None, groups=OF_PROGRAMS)
        with ours_program(command, model, Path(folder)) as url:
            answers = ask_all(lambda _: url, None, groups=OF_PROGRAMS)
    text, differing = report(answers, theirs, with_node=True)
    table = text[text.index("| what |") :]
    program = Path(shlex.split(command)[0]).name
    lines = [
        f"## {program}",
        "",
        f"The same cases to `{program}` with {model.name}, and to this server in front of it.",
        "*401 bare*: the program asks for its key, which the plain requests of these cases do not have.",
        "",
        table,
    ]
    text = "\n".join(lines)
    document(program, text, DOCUMENT)
    print(text)
    return 1 if differing else 0


def judged_answers(url: str) -> str:
    """The metric that counts them."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return "\n".join(line for line in lines if line.startswith("coe_held_seconds_count"))


def ask_all(
    url_of: Callable[[str], str], node: Path | None, model: str = EXPERT, groups: Collection[str] = CASES
) -> Answers:
    answers: Answers = {}
    for group in groups:
        cases = CASES[group]
        url = url_of(group)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=180) as client:
            side = Side(url, EXPERT if group in NOT_ROUTED else model, EMBEDDER, client)
            answers[group] = {name: settled(answer(ask, side)) for name, ask in cases.items()}
        print(f"{url}: {group}", file=sys.stderr, flush=True)
    if node is not None:
        answers["Node"] = settled(ask_node(url_of("chat"), node, model))
    return answers


def answer(ask: Callable[[Side], Any], side: Side) -> Any:
    try:
        return ask(side)
    except Exception as error:  # noqa: BLE001  each client library has its own exceptions; `refusal` raises all others
        return refusal(error)


def ask_node(url: str, node: Path, model: str) -> Any:
    run = subprocess.run(
        ["node", NODE_SCRIPT, url, model],
        env=os.environ | {"NODE_PACKAGES": str(node.resolve())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if run.returncode != 0:
        raise SystemExit(f"the Node clients failed: {run.stderr[-2000:]}")
    return json.loads(run.stdout)


def report(answers: Answers, theirs: Answers, with_node: bool) -> tuple[str, int]:
    """The table, and the number of cases that differ."""
    lines = [
        f"Each case was sent to a bare `vllm serve` and to this server in front of the same model ({MODEL_NAME}),",
        "with the usual clients.",
        "",
        "- *Same*: every field that a caller sees is equal, except ids, times and, in a stream, the number of tokens",
        "  in an event, which varies with vLLM itself.",
        "- *Same refusal*: the same exception with the same status and body.",
        "- *Same status (ours)*: this server refuses the request before an engine sees it, with the same exception and",
        "  status and its own message.",
        "",
        "`python -m benchmarks.compatibility --node FOLDER` made this table.",
        "",
        "| what | case | result |",
        "|---|---|---|",
    ]
    differing = 0
    for group, cases in theirs.items():
        for name, bare_answer in cases.items():
            found = list(differences(*_compared(name, answers[group].get(name), bare_answer)))
            differing += bool(found)
            refused = "same refusal" if is_refusal(bare_answer) else "same"
            same = "same status (ours)" if name in REFUSED_BY_US else refused
            lines.append(f"| {group} | {name} | {same if not found else '**differs**: ' + _cell(found)} |")
    total = sum(len(cases) for cases in theirs.values())
    lines += ["", f"{total - differing} of {total} cases are the same."]
    if not with_node:
        lines.append("The Node clients were not tested: no folder with their packages was given.")
    return "\n".join(lines), differing


def _compared(name: str, ours_: Any, bare_: Any) -> tuple[Any, Any]:
    if name not in REFUSED_BY_US:
        return joined(ours_), joined(bare_)
    return [_status(ours_)], [_status(bare_)]


def _status(answer_: Any) -> Any:
    return answer_[0] if isinstance(answer_, list) else answer_


def _cell(found: list[str]) -> str:
    return "; ".join(found[:3]).replace("|", "\\|") + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


MODEL_NAME = "the demo's generalist, 256 tokens of context"

if __name__ == "__main__":
    sys.exit(main())
