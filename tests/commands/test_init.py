"""`coe init`: what it finds, what it proposes, what it leaves alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from coe_server.cli import app
from coe_server.commands.first_file import first_file
from coe_server.commands.machine_here import VERSION_SECONDS, CardHere, MachineHere, Program, look
from coe_server.commands.models_here import MOST_ENTRIES, FoundModel, Skipped, find_models
from coe_server.commands.proposal import memory_of, propose, room_of
from coe_server.config.schema import ServerConfig, load_config
from tests.engines.make_gguf import LLAMA, write_gguf
from tests.engines.small_adapter import make_adapter
from tests.patience import PATIENCE_SECONDS

GIB = 1 << 30
AWQ_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "quantization_config": {"bits": 4, "group_size": 128, "quant_method": "awq"},
}
BOTH = {"vllm": Program("/opt/vllm/bin/vllm"), "llama-server": Program("/usr/bin/llama-server", "4567")}


def hub_model(cache: Path, name: str, size_bytes: int = 5 << 20, **changes: object) -> Path:
    """As huggingface_hub keeps it: files are links to blobs beside them."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots/c0ffee"
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs/main").write_text("c0ffee")
    (repository / "blobs/config").write_text(json.dumps(AWQ_7B | changes))
    with (repository / "blobs/weights").open("wb") as out:
        out.truncate(size_bytes)
    for file, blob in (("config.json", "config"), ("model.safetensors", "weights")):
        (snapshot / file).symlink_to(f"../../blobs/{blob}")
    return snapshot


def ollama_model(store: Path, name: str, tag: str, digest: str, size_bytes: int = 1 << 20) -> Path:
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}]
    manifest = store / f"manifests/registry.ollama.ai/library/{name}/{tag}"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"layers": layers}))
    return write_gguf(store / f"blobs/sha256-{digest}", size_bytes)


def program(folder: Path, name: str, lines: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
    (folder / name).chmod(0o755)


Init = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, in which the command runs."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words: str) -> Result:
    return CliRunner().invoke(app, ["init", *words])


def test_a_machine_with_nothing_gets_a_server_that_starts(home: Path) -> None:
    done = init()
    assert done.exit_code == 0, done.output
    assert "no model can run here yet" in done.output
    (only,) = load_config(home / "serve.yaml").experts
    assert (only.name, only.engine) == ("pretend", "simulated")
    assert CliRunner().invoke(app, ["validate", "serve.yaml"]).exit_code == 0
    assert stat.S_IMODE((home / "serve.yaml").stat().st_mode) == 0o600


def test_models_of_every_kind_of_place_become_experts_with_their_names(home: Path) -> None:
    program(home / "bin", "llama-server", "echo 'version: 4567 (abc)'")
    program(home / "bin", "vllm", "echo 0.32.0")
    write_gguf(home / "models/Gemma 3.Q4_K_M.gguf", 5 << 20)
    hub_model(home / ".cache/huggingface/hub", "Qwen/Qwen2.5-7B-Instruct-AWQ")
    ollama_model(home / ".ollama/models", "llama3.2", "latest", "a" * 64)
    done = init()
    assert done.exit_code == 0, done.output
    config = load_config(home / "serve.yaml")
    found = {expert.name: expert for expert in config.experts}
    assert set(found) == {"gemma-3.q4_k_m", "qwen2.5-7b-instruct-awq", "llama3.2-latest"}
    assert found["qwen2.5-7b-instruct-awq"].engine == "vllm"
    assert found["gemma-3.q4_k_m"].engine == found["llama3.2-latest"].engine == "command"
    assert config.aliases == {
        "llama3.2:latest": "llama3.2-latest",
        "llama3.2": "llama3.2-latest",
        "Qwen/Qwen2.5-7B-Instruct-AWQ": "qwen2.5-7b-instruct-awq",
    }
    assert config.vllm.command == [str(home / "bin/vllm")]
    assert f"llama-server: {home}/bin/llama-server, 4567" in (home / "serve.yaml").read_text()
    checked = CliRunner().invoke(app, ["validate", "serve.yaml"])
    assert checked.exit_code == 0, checked.output
    assert "warning" not in checked.output
    assert "hint" not in checked.output


def test_a_dry_run_prints_the_same_file_and_writes_nothing(home: Path) -> None:
    printed = init("--dry-run")
    assert not (home / "serve.yaml").exists()
    init("--out", "other.yaml")
    without_memory = [line for line in printed.stdout.splitlines() if "RAM available" not in line]
    assert without_memory == [
        line for line in (home / "other.yaml").read_text().splitlines() if "RAM available" not in line
    ]


@pytest.mark.parametrize("what", ["file", "link", "broken link"])
def test_what_is_there_is_never_overwritten(home: Path, what: str) -> None:
    target = home / "target"
    if what != "broken link":
        target.write_text("mine")
    if what == "file":
        (home / "serve.yaml").write_text("mine")
    else:
        (home / "serve.yaml").symlink_to(target)
    done = init()
    assert done.exit_code == 2
    assert "already exists and is not changed; give another name, or --dry-run" in done.stderr
    assert what == "broken link" or (home / "serve.yaml").read_text() == "mine"
    assert target.exists() == (what != "broken link")


def test_a_place_that_cannot_be_written_is_said(home: Path) -> None:
    done = init("--out", "nowhere/serve.yaml")
    assert done.exit_code == 1
    assert "nowhere/serve.yaml: No such file or directory" in done.stderr


def test_models_without_their_engine_are_shown_as_comments_with_the_reason(home: Path) -> None:
    write_gguf(home / "models/a.gguf")
    hub_model(home / ".cache/huggingface/hub", "Qwen/Qwen2.5-7B-Instruct-AWQ")
    assert init().exit_code == 0
    text = (home / "serve.yaml").read_text()
    assert "# Left out: the program llama-server is not on PATH" in text
    assert "# Left out: the program vllm is not on PATH" in text
    assert [expert.name for expert in load_config(home / "serve.yaml").experts] == ["pretend"]


def skipped_in(folder: Path, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    models, skipped = find_models([folder], environment or {"HOME": "/nonexistent"})
    assert models == []
    return {Path(one.place).name: one.why for one in skipped}


def test_no_link_is_followed_out_of_a_folder(tmp_path: Path) -> None:
    outside = write_gguf(tmp_path / "outside/secret.gguf")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file.gguf").symlink_to(outside)
    (inside / "folder").symlink_to(outside.parent)
    (inside / "circle.gguf").symlink_to("circle.gguf")
    assert skipped_in(inside) == dict.fromkeys(("file.gguf", "circle.gguf"), f"a link leads out of {inside}")


@pytest.mark.parametrize("way", ["weights", "snapshot", "reference", "repository"])
def test_no_link_is_followed_out_of_the_hubs_cache(tmp_path: Path, way: str) -> None:
    cache, elsewhere = tmp_path / "hub", tmp_path / "elsewhere"
    snapshot = hub_model(cache, "org/model")
    repository = snapshot.parents[1]
    elsewhere.mkdir()
    if way == "weights":
        (snapshot / "model.safetensors").unlink()
        (elsewhere / "weights").write_bytes(bytes(100))
        (snapshot / "model.safetensors").symlink_to(elsewhere / "weights")
    elif way == "snapshot":
        snapshot.rename(elsewhere / "snapshot")
        snapshot.symlink_to(elsewhere / "snapshot")
    elif way == "reference":
        snapshot.rename(elsewhere / "snapshot")
        (repository / "refs/main").write_text(f"../../../{elsewhere.name}/snapshot")
    else:
        repository.rename(elsewhere / "repository")
        repository.symlink_to(elsewhere / "repository")
    models, skipped = find_models([], {"HF_HUB_CACHE": str(cache), "HOME": "/nonexistent"})
    assert models == []
    assert [one.place for one in skipped] == ["org/model"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"general.architecture": "clip"}, "is the projector of a model that takes images"),
        (LLAMA | {"general.type": "adapter"}, "is of the kind 'adapter', no model"),
        ({"general.type": "model"}, "its header names no architecture"),
        (LLAMA | {"split.no": 0, "split.count": 3}, "1 of its 3 parts are here"),
    ],
)
def test_a_gguf_file_that_is_no_whole_model_is_passed_over_with_the_reason(
    tmp_path: Path, values: dict[str, object], why: str
) -> None:
    write_gguf(tmp_path / "m.gguf", values=values)
    assert skipped_in(tmp_path)["m.gguf"].startswith(why)


def test_parts_of_one_model_are_one_model_of_all_their_bytes(tmp_path: Path) -> None:
    for number in (1, 2):
        values = LLAMA | {"split.no": number - 1, "split.count": 2}
        write_gguf(tmp_path / f"big-0000{number}-of-00002.gguf", 3 << 20, values)
    ((one,), _) = find_models([tmp_path], {"HOME": "/nonexistent"})
    assert (one.name, one.size_bytes) == ("big", 6 << 20)
    assert one.model.endswith("big-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not known to answer prompts"),
        ({"architectures": 3}, "its config.json is not known to answer prompts"),
        ({"is_encoder_decoder": True}, "Qwen2ForCausalLM is not known to answer prompts"),
        ({"text_config": "x"}, "its config.json cannot be understood"),
    ],
)
def test_a_model_of_the_hub_that_answers_no_prompts_is_passed_over(
    tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    hub_model(tmp_path / "hub", "org/model", **changes)
    _, skipped = find_models([], {"HF_HUB_CACHE": str(tmp_path / "hub"), "HOME": "/nonexistent"})
    assert [one.why for one in skipped] == [why]


def test_an_adapter_of_the_hub_is_passed_over_with_what_it_is(tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--org--sql"
    make_adapter(repository / "snapshots/abc")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    _, skipped = find_models([], {"HF_HUB_CACHE": str(tmp_path / "hub"), "HOME": "/nonexistent"})
    assert [one.why for one in skipped] == ["is an adapter (LoRA): add it as an expert of engine: lora, with its base"]


@pytest.mark.parametrize(
    "manifest",
    ["{", "[]", '{"layers": 3}', '{"layers": [{"mediaType": "a.model", "digest": "sha256:../../../../etc/passwd"}]}'],
)
def test_a_manifest_that_names_nothing_of_the_store_is_passed_over(tmp_path: Path, manifest: str) -> None:
    place = tmp_path / "manifests/registry.ollama.ai/library/m/latest"
    place.parent.mkdir(parents=True)
    place.write_text(manifest)
    _, skipped = find_models([], {"OLLAMA_MODELS": str(tmp_path), "HOME": "/nonexistent"})
    assert [(one.place, one.why) for one in skipped] == [
        ("ollama m:latest", "its manifest names no model on this machine")
    ]


def test_a_folder_without_an_end_is_left_after_so_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MOST_ENTRIES + 1):
        (tmp_path / f"{number}").touch()
    assert skipped_in(tmp_path)[tmp_path.name].startswith(f"has more than {MOST_ENTRIES:,} entries")


SPY = """
import os, sys
told = open(os.environ["SPIED"], "w")

def spy(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        told.write(f"{event} {arguments!r}\\n")
    elif event == "open" and str(arguments[0]).startswith(os.environ["HOME"]):
        told.write(f"open {arguments[0]}\\n")
    elif event in {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"}:
        told.write(f"run {arguments[1]!r}\\n")
    told.flush()

sys.addaudithook(spy)
from coe_server.__main__ import main
sys.argv = ["coe", "init", "--dry-run"]
main()
"""


def test_no_connection_is_made_no_secret_is_read_and_only_versions_are_asked(home: Path, tmp_path: Path) -> None:
    for name in ("llama-server", "vllm", "ollama"):
        program(home / "bin", name, "echo 1.2.3")
    cache = home / ".cache/huggingface"
    hub_model(cache / "hub", "Qwen/Qwen2.5-7B-Instruct-AWQ")
    (cache / "token").write_text("hf_secret")
    write_gguf(home / "models/a.gguf")
    environment = {**os.environ, "HF_TOKEN": "hf_other", "SPIED": "/dev/stderr"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SPY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert "hf_" not in done.stdout
    events = done.stderr.splitlines()
    assert [event for event in events if event.startswith("socket")] == []
    assert sorted(event for event in events if event.startswith("run")) == [
        f"run ['{home}/bin/{name}', '--version']" for name in ("llama-server", "vllm")
    ]
    read = {event.removeprefix(f"open {home}/") for event in events if event.startswith("open ")}
    assert not [name for name in read if "token" in name or name.endswith((".safetensors", "/weights"))]


def test_a_program_that_does_not_tell_its_version_is_ended_with_all_that_it_started(home: Path) -> None:
    program(home / "bin", "vllm", f"/bin/sleep 600 & echo $! > {home}/child; wait")
    program(home / "bin", "llama-server", "while :; do echo yes; done")
    began = time.monotonic()
    found = look(os.environ).programs
    assert found["vllm"].version == found["llama-server"].version == ""
    assert time.monotonic() - began < VERSION_SECONDS + PATIENCE_SECONDS
    child = Path(f"/proc/{(home / 'child').read_text().strip()}/stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] in "ZX"


def machine(*cards_gib: float, ram_gib: float = 64, programs: Mapping[str, Program] = BOTH) -> MachineHere:
    cards = tuple(CardHere("Card", int(size * GIB), int(0.98 * size * GIB)) for size in cards_gib)
    return MachineHere(cards, int(ram_gib * GIB), programs)


def model(form: str, size_gib: float, **more: Any) -> FoundModel:
    settings: dict[str, Any] = {"token_bytes": 57_344, "context_tokens": 32_768, "told": "awq"} | more
    name = settings.pop("name", "model")
    place = f"/models/{name}.gguf" if form == "gguf" else f"org/{name}"
    return FoundModel(name, place, form, int(size_gib * GIB), **settings)  # type: ignore[arg-type]


def proposed(models: list[FoundModel], here: MachineHere) -> Any:
    return propose(models, here, room_of(here, memory_of(here, models)))


def test_a_kv_cache_is_what_32k_tokens_take_and_a_sixth_of_a_card_at_most() -> None:
    (small,) = proposed([model("safetensors", 5)], machine(24))
    assert small.entry["kv_cache"] == "1792MiB"
    assert small.entry["args"] == {"max_model_len": 32_768}
    (large,) = proposed([model("safetensors", 9, token_bytes=200_000)], machine(24))
    assert large.entry["kv_cache"] == "3840MiB"
    assert large.entry["args"]["max_model_len"] % 1024 == 0


def test_a_model_larger_than_a_card_takes_several_or_is_left_out_with_both_figures() -> None:
    (alone,) = proposed([model("safetensors", 40)], machine(24))
    assert alone.left_out == "needs 42.5 GiB of device memory; the largest card has 23.5 GiB"
    (wide,) = proposed([model("safetensors", 30)], machine(24, 24, 24, ram_gib=200))
    assert (wide.left_out, wide.entry["args"]["tensor_parallel_size"]) == ("", 2)
    (wider,) = proposed([model("safetensors", 60)], machine(24, 24, 24, 24, ram_gib=200))
    assert wider.entry["args"]["tensor_parallel_size"] == 4
    (mixed,) = proposed([model("safetensors", 40)], machine(24, 32, ram_gib=200))
    assert mixed.left_out, "ranks need cards that are equal"


def test_a_machine_with_little_ram_has_experts_that_do_not_sleep() -> None:
    (one,) = proposed([model("safetensors", 10)], machine(24, ram_gib=12))
    assert one.entry["sleep"] is False
    (none,) = proposed([model("safetensors", 10)], machine(24, ram_gib=1))
    assert "of host memory" in none.left_out


def test_a_gguf_model_takes_a_smaller_context_before_it_is_left_out() -> None:
    (full,) = proposed([model("gguf", 5)], machine(24))
    assert "-c 8192 -ngl 99" in full.entry["command"]
    (less,) = proposed([model("gguf", 5.3, token_bytes=131_072)], machine(7))
    assert "-c 4096 -ngl 99" in less.entry["command"]
    (none,) = proposed([model("gguf", 30)], machine(24))
    assert none.left_out.startswith("needs 31.")
    (on_cpu,) = proposed([model("gguf", 5)], machine())
    assert "-ngl" not in on_cpu.entry["command"]


def test_names_and_aliases_are_each_one_experts() -> None:
    twins = [
        model("gguf", 1, name="A b", other_names=("x", "y")),
        model("gguf", 1, name="a-B", other_names=("x", "auto:quality", "no alias")),
        model("gguf", 1, name="auto"),
        model("gguf", 1, name="!!"),
    ]
    found = proposed(twins, machine(24))
    assert [one.name for one in found] == ["a-b", "a-b-2", "auto-2", "model"]
    assert [one.aliases for one in found] == [("x", "y"), (), (), ()]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT, st.sampled_from(["gguf", "safetensors"]), st.floats(0, 60)), max_size=4))
def test_whatever_files_are_called_the_file_is_a_valid_configuration_of_what_fits(
    seen: list[tuple[str, str, str, float]],
) -> None:
    here = machine(24, 24)
    models = [model(form, size, name=name or "x", told=told, other_names=(told,)) for name, told, form, size in seen]
    experts = proposed(models, here)
    skipped = [Skipped(name, told) for name, told, _, _ in seen]
    text = first_file(here, {"device": "auto", "host": "auto"}, experts, skipped, [name for name, *_ in seen])
    config = ServerConfig.model_validate(yaml.safe_load(text))
    shown = [one.name for one in experts if not one.left_out]
    assert [one.name for one in config.experts] == (shown or ["pretend"])
    by_name = {expert.name: expert for expert in config.experts}
    for one in experts:
        if not one.left_out:
            assert by_name[one.name].model == one.entry["model"]  # type: ignore[union-attr]
    assert not [fault for expert in config.experts for fault in expert.contradictions()]
