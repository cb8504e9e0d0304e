"""A whole server whose adapters come and go while their base answers: its engine goes on, unless they do not fit it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coe_server.engines.memory import process_tree
from tests.engines.small_adapter import make_adapter, make_base
from tests.patience import PATIENCE_SECONDS
from tests.test_reload import ask, reload, serving, settings

STAND_IN = Path(__file__).parents[1] / "engines/stand_in_vllm.py"
NOTHING: dict[str, list[str]] = {"added": [], "removed": [], "restarted": [], "adjusted": []}
CLIENTS = 4


@dataclass
class Served:
    """A server with a base and its adapters."""

    folder: Path
    port: int
    server_pid: int
    fixed: dict[str, Any]

    def reload(self, *adapters: str) -> dict[str, list[str]]:
        """Have these adapters from now on. Returns what the server tells of it."""
        told = settings(self.port, **self.fixed | {"experts": experts(*adapters)})
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(told))
        changed: dict[str, list[str]] = reload(self.port)["experts"]
        return changed

    def ask(self, model: str) -> tuple[int, str]:
        status, _, body = ask(self.port, "POST", "/v1/completions", {"model": model, "prompt": "hi"})
        return status, body["choices"][0]["text"] if status == 200 else body["error"]["code"]

    @property
    def engines(self) -> list[int]:
        """The engines' processes."""
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in process_tree(self.server_pid)}
        return [pid for pid, line in lines.items() if STAND_IN.name.encode() in line and b"keeper.py" not in line]


@dataclass
class Crowd:
    """Clients that ask for these names all the time, and what they got."""

    served: Served
    names: tuple[str, ...]
    answers: dict[str, set[tuple[int, str]]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join(PATIENCE_SECONDS)

    def _ask(self) -> None:
        while not self.over.is_set():
            for name in self.names:
                self.answers.setdefault(name, set()).add(self.served.ask(name))


def experts(*adapters: str) -> list[dict[str, Any]]:
    base = {"name": "coder", "engine": "vllm", "model": "./coder", "kv_cache": "4MiB"}
    return [base, *({"name": one, "engine": "lora", "base": "coder", "adapter": f"./{one}"} for one in adapters)]


@contextmanager
def served(folder: Path, *adapters: str) -> Iterator[Served]:
    make_base(folder / "coder")
    vllm = {"platform": "cpu", "command": [sys.executable, str(STAND_IN)], "process_memory": "100MiB"}
    fixed = {"router": None, "vllm": vllm, "memory": {"device": "64MiB", "host": "1GiB"}}
    with serving(folder, **fixed, experts=experts(*adapters)) as (process, port, _, _):
        yield Served(folder, port, process.pid, fixed)


def test_adapters_come_and_go_while_their_base_answers_and_its_engine_goes_on(tmp_path: Path) -> None:
    for seed, name in enumerate(("sql", "law", "bash")):
        make_adapter(tmp_path / name, seed=seed)
    with served(tmp_path, "sql", "bash") as server:
        right = {name: server.ask(name) for name in ("coder", "sql", "bash")}
        engines, crowd = server.engines, Crowd(server, ("coder", "bash"))
        with crowd.asking():
            assert server.reload("sql", "bash", "law") == NOTHING | {"added": ["law"]}
            right["law"] = server.ask("law")
            assert len(set(right.values())) == 4
            assert server.reload("bash", "law") == NOTHING | {"removed": ["sql"]}
            assert server.ask("sql") == (404, "model_not_found")
            assert server.ask("law") == right["law"]
            assert server.reload("bash", "law", "sql") == NOTHING | {"added": ["sql"]}
            assert server.ask("sql") == right["sql"]
        assert crowd.answers == {name: {right[name]} for name in crowd.names}
        assert len(engines) == 1
        assert server.engines == engines
        assert "adapter 'sql' of 'coder' is unloaded" in (tmp_path / "server.log").read_text()


def test_adapters_that_do_not_fit_the_running_engine_have_it_start_anew(tmp_path: Path) -> None:
    for seed, name in enumerate(("sql", "wide")):
        make_adapter(tmp_path / name, seed=seed, rank=(2, 9)[seed])
    with served(tmp_path) as server:
        right, engines = {"coder": server.ask("coder")}, [server.engines]
        crowd = Crowd(server, ("coder",))
        with crowd.asking():
            for names in (("sql",), ("sql", "wide")):
                assert server.reload(*names) == NOTHING | {"added": [names[-1]], "restarted": ["coder"]}
                right[names[-1]] = server.ask(names[-1])
                engines.append(server.engines)
                assert {name: server.ask(name) for name in right} == right
        assert crowd.answers == {"coder": {right["coder"]}}
        assert len({tuple(found) for found in engines}) == 3
        log = (tmp_path / "server.log").read_text()
        assert "coder: starts anew for its adapters: it takes no adapters (args.enable_lora)" in log
        assert "it was started for ranks up to 8 (max_lora_rank), 'wide' has 9" in log
        assert all(status == 200 for status, _ in right.values()), json.dumps(right)
