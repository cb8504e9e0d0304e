"""Getting started, operating and deploying: every command of the pages is run, here or by deploy/check.sh."""

import re
import subprocess

import pytest
import yaml

from coe_server.config.schema import load_config
from tests.docs.reader import ROOT, blocks, blocks_of, reading
from tests.patience import PATIENCE_SECONDS

STARTED, OPERATE, DEPLOY = (ROOT / f"docs/{name}.md" for name in ("getting-started", "operate", "deploy"))

pytestmark = pytest.mark.timeout(1200)  # a dozen programs start, each with its imports: minutes on a busy machine


def on_a_free_port(content, port):
    return f"http: {{port: {port}}}\n{content.replace('start_seconds: 2', 'start_seconds: 0.05')}"


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    with reading(tmp_path_factory.mktemp("guides"), on_a_free_port) as reader:
        for block in blocks(STARTED):
            reader.follow(block)
        before, keys, after = OPERATE.read_text().partition("\n## Keys\n")
        for block in blocks_of(before):
            if block.language == "sh":
                reader.follow(block)
        with (reader.folder / "serve.yaml").open("a") as file:
            file.write("keys: {file: keys.json}\n")  # the server that runs has none yet
        for block in blocks_of(keys + after):
            if block.language == "sh":
                reader.follow(block)
        yield reader


def answer_to(reader, beginning):
    return next(said for line, said in reader.said.items() if line.startswith(beginning))


def test_getting_started_ends_with_answers_and_an_expert_asleep(followed):
    assert "x-coe-expert: maths" in answer_to(followed, "curl -sfi")
    assert answer_to(followed, "python ask.py").splitlines() == ["coder answers: Hello!", "writer answers: Hello!"]
    shown = answer_to(followed, "coe experts")
    assert re.search(r"\bhost\b", shown)
    assert len(re.findall(r"^(?:coder|maths|writer) +device", shown, re.MULTILINE)) == 2


def test_what_operating_looks_at_is_there(followed):
    assert "No request waits longer than" in answer_to(followed, "coe validate")
    assert answer_to(followed, "coe keys add serve.yaml alice").strip()
    assert "boss" in answer_to(followed, "coe keys list")
    assert "coe_wait_bound_seconds" in answer_to(followed, "curl -sf http://127.0.0.1:8080/metrics")
    assert "32" in answer_to(followed, "coe bench")
    assert (followed.folder / "journal/feedback.jsonl").exists()


def test_every_command_of_deploying_is_one_that_the_check_runs():
    script = (ROOT / "deploy/check/composition.sh").read_text()
    run = set(re.findall(r"^ *as_documented (docker .*?)(?: >.*)?$", script, re.MULTILINE))
    told = {line for block in blocks(DEPLOY) if block.language == "sh" for line in block.text.splitlines()}
    assert "export COMPOSE_FILE=compose.yaml:compose.cpu.yaml" in told
    assert {line for line in told if line.startswith("docker ")} == run
    assert "COMPOSE_FILE=compose.yaml:compose.cpu.yaml" in script


def test_the_settings_that_deploying_names_are_the_compositions():
    (settings,) = [block.text for block in blocks(DEPLOY) if block.language == "ini"]
    composition = (ROOT / "compose.yaml").read_text()
    for name in re.findall(r"^(\w+)=", settings, re.MULTILINE):
        assert f"${{{name}:-" in composition
        assert name in composition.partition("services:")[0], f"{name} is not explained"


def test_the_configuration_that_deploying_shows_is_valid(tmp_path):
    (shown,) = [block.text for block in blocks(DEPLOY) if block.language == "yaml"]
    model = tmp_path / "coder"
    model.mkdir()
    (model / "config.json").write_text("{}")
    file = tmp_path / "serve.yaml"
    file.write_text(shown.replace("/models/Qwen2.5-Coder-7B-Instruct", str(model)))
    config = load_config(file)
    assert config.http.port == 8080
    demo = yaml.safe_load((ROOT / "deploy/demo-cpu/serve.yaml").read_text())
    assert config.keys.model_dump(mode="json", include=set(demo["keys"])) == demo["keys"]
    assert set(demo["keys"]) == {"file", "api_key_env", "admin_key_env", "scrape_key_env"}


def test_the_unit_is_one_that_systemd_understands(tmp_path):
    if subprocess.run(["which", "systemd-analyze"], capture_output=True, check=False).returncode != 0:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "coe.service"
    unit.write_text((ROOT / "deploy/coe.service").read_text().replace("/opt/coe/bin/coe", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
