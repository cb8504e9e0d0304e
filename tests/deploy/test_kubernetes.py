"""Manifests and chart without a cluster: Kubernetes' schemas, the chart's own, and what image and server need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from coe_server.config.schema import load_config
from coe_server.http.auth import PUBLIC
from deploy.manifests import CHART, WRITTEN, rendered, templates, write_manifests
from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
SECRET = WRITTEN / "secret/coe-keys.yaml"
FILES = (*sorted(WRITTEN.glob("*.yaml")), SECRET)
VERSIONS = ("1.29", "1.37")  # the oldest that the chart accepts, the newest whose schema is known
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
HELM = shutil.which("helm")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """Kind and name -> the object, over all manifests."""
    found = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
    named = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(named) == len(found)
    return named


def pod_of(kind: str, name: str) -> dict[str, Any]:
    pod: dict[str, Any] = objects()[kind, name]["spec"]["template"]["spec"]
    return pod


PODS = [("StatefulSet", "coe-node"), ("Deployment", "coe-front")]


def test_the_manifests_are_what_the_chart_renders_to(tmp_path: Path) -> None:
    write_manifests(tmp_path)
    assert contents(tmp_path) == contents(WRITTEN), "make manifests"


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.glob("*.yaml")}


@pytest.mark.parametrize(
    "template", ["{{ if .Values.a }}", "{{ .Release.Name }}", "{{ .Values.a | b64enc }}", "{{- .Values.a }}"]
)
def test_template_syntax_beyond_values_and_three_filters_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="unknown template syntax"):
        rendered(f"kind: {template}\n", {"a": "b"})


@pytest.mark.skipif(HELM is None, reason="no `helm` on PATH, which renders the chart itself")
def test_helm_renders_the_same_objects_and_knows_the_values_schema() -> None:
    assert HELM is not None
    done = run(HELM, "template", "coe", CHART)
    assert done.returncode == 0, done.stderr
    by_helm = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout) if one}
    assert by_helm == {key: one for key, one in objects().items() if key[0] != "Secret"}
    assert run(HELM, "lint", "--strict", CHART).returncode == 0
    assert run(HELM, "template", "coe", CHART, "--set", "nodes.gpu=2").returncode != 0


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_follow_kubernetes_schemas_and_a_made_up_key_does_not(tmp_path: Path, version: str) -> None:
    done = schema_says(version, *FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed for resource ") == len(objects())
    for file, key in (("nodes", "podManagementPolicy"), ("front", "enableServiceLinks"), ("nodes", "maxUnavailable")):
        wrong = tmp_path / f"{key}.yaml"
        wrong.write_text((WRITTEN / f"{file}.yaml").read_text().replace(f"{key}:", f"{key}s:"))
        assert schema_says(version, wrong).returncode != 0, key


def schema_says(version: str, *files: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "kubernetes_validate", "--strict", "-k", version, *files)


def test_the_values_follow_the_charts_schema_and_mistakes_do_not(tmp_path: Path) -> None:
    assert values_schema_says(CHART / "values.yaml").returncode == 0
    text = (CHART / "values.yaml").read_text()
    for right, wrong in (
        ("gpus: 1 ", "gpu: 1 "),
        ("count: 2", "count: 0"),
        ("memory: 64Gi", "memory: 64GB"),
        ("role: node", "role: front"),
        ("image: coe-server:0.1.0-gpu", "image: coe-server"),
    ):
        assert text.count(right) == 1
        file = tmp_path / "values.yaml"
        file.write_text(text.replace(right, wrong))
        assert values_schema_says(file).returncode != 0, wrong


def values_schema_says(file: Path) -> subprocess.CompletedProcess[str]:
    check = Path(sys.executable).parent / "check-jsonschema"
    return run(check, "--schemafile", CHART / "values.schema.json", file)


def test_every_value_is_used_and_every_value_that_is_used_is_in_the_schema() -> None:
    used = {name for template in templates() for name in re.findall(r"\{\{ \.Values\.([\w.]+)", template.read_text())}
    assert used == set(flat(VALUES))
    schema = json.loads((CHART / "values.schema.json").read_text())
    for part in (schema, schema["properties"]["nodes"], schema["properties"]["front"]):
        assert set(part["required"]) == set(part["properties"]) - {"global"}


def flat(values: dict[str, Any]) -> list[str]:
    inner = {key: value for key, value in values.items() if key in {"nodes", "front"}}
    return [key for key in values if key not in inner] + [f"{key}.{name}" for key in inner for name in inner[key]]


@pytest.mark.parametrize(("kind", "name"), PODS)
def test_every_container_is_confined_as_the_image_allows(kind: str, name: str) -> None:
    pod = pod_of(kind, name)
    (user,) = set(re.findall(r"^USER (\d+):\1$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    as_whom = pod["securityContext"]
    assert {as_whom[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    assert as_whom["runAsNonRoot"] is True
    assert as_whom["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False  # it would be mounted inside /run/secrets
    assert pod["enableServiceLinks"] is False  # Kubernetes would set COE_PORT=tcp://...
    assert pod["shareProcessNamespace"] is True
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert container["image"] == VALUES["image"]
        places = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/etc/coe", "/run/secrets", "/var/lib/coe", "/tmp"} <= places
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes_of(kind, name)


def volumes_of(kind: str, name: str) -> set[str]:
    spec = objects()[kind, name]["spec"]
    claimed = {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    return claimed | {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_what_is_mounted_for_writing_is_a_folder_that_the_image_gives_to_its_user() -> None:
    given = set(re.findall(r"(?<= )/[\w/]+", (ROOT / "deploy/image/prepare.sh").read_text())) | {"/tmp", "/dev/shm"}
    for pod in PODS:
        (container,) = pod_of(*pod)["containers"]
        written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written <= given


@pytest.mark.parametrize(("kind", "name"), PODS)
def test_probes_ask_paths_that_need_no_key_on_the_port_of_the_configuration(kind: str, name: str) -> None:
    (container,) = pod_of(kind, name)["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in PUBLIC
        assert asked["port"] == "http"
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"  # preloading may take longer than any start
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    command, file = container["args"]
    assert command == "serve"
    settings = configuration(name, Path(file).name)
    assert container["ports"] == [{"name": "http", "containerPort": settings["http"]["port"]}]
    assert settings["http"]["host"] == "0.0.0.0"
    assert str(settings["state_directory"]).startswith("/var/lib/coe/")


def configuration(name: str, file: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(objects()["ConfigMap", name]["data"][file])
    return settings


@pytest.mark.parametrize(("name", "file"), [("coe-node", "node.yaml"), ("coe-front", "front.yaml")])
def test_the_configurations_are_valid(tmp_path: Path, name: str, file: str) -> None:
    text = objects()["ConfigMap", name]["data"][file]
    written = tmp_path / file
    written.write_text(text.replace("/opt/demo/experts", str(ROOT / "demo/experts")))
    config = load_config(written)
    assert config.role == ("node" if file == "node.yaml" else "server")
    assert len(config.experts) == (5 if file == "node.yaml" else 0)
    assert config.has_nodes == (file == "front.yaml")
    assert {"COE_NODE_KEY"} <= config.secret_variables


def test_the_front_finds_the_nodes_by_their_headless_service() -> None:
    service = objects()["Service", "coe-nodes"]
    assert service["spec"]["clusterIP"] == "None"
    nodes = configuration("coe-front", "front.yaml")["nodes"]
    assert nodes["host"] == service["metadata"]["name"]
    assert [port["port"] for port in service["spec"]["ports"]] == [nodes["port"]]
    assert objects()["StatefulSet", "coe-node"]["spec"]["serviceName"] == service["metadata"]["name"]
    assert configuration("coe-node", "node.yaml")["http"]["port"] == nodes["port"]


@pytest.mark.parametrize(
    ("kind", "name", "pod"),
    [
        ("Service", "coe-nodes", PODS[0]),
        ("PodDisruptionBudget", "coe-node", PODS[0]),
        ("StatefulSet", "coe-node", PODS[0]),
        ("Service", "coe", PODS[1]),
        ("Deployment", "coe-front", PODS[1]),
    ],
)
def test_a_selector_finds_its_pods_and_no_others(kind: str, name: str, pod: tuple[str, str]) -> None:
    selector = objects()[kind, name]["spec"]["selector"]
    wanted = selector.get("matchLabels", selector).items()
    for other in PODS:
        labels = objects()[other]["spec"]["template"]["metadata"]["labels"]
        assert (wanted <= labels.items()) == (other == pod)


def test_a_node_has_the_node_key_alone_and_an_empty_one_stops_the_start() -> None:
    placeholder = yaml.safe_load(SECRET.read_text())
    assert placeholder["stringData"] == {"COE_NODE_KEY": ""}  # no key that works in two clusters
    (secrets,) = (volume for volume in pod_of(*PODS[0])["volumes"] if volume["name"] == "secrets")
    shown = {
        item["path"]: source["secret"]["name"]
        for source in secrets["projected"]["sources"]
        for item in source["secret"]["items"]
    }
    assert shown == {"COE_NODE_KEY": placeholder["metadata"]["name"], "HF_TOKEN": VALUES["hubSecret"]}
    assert secrets["projected"]["defaultMode"] == 0o440
    (secrets,) = (volume for volume in pod_of(*PODS[1])["volumes"] if volume["name"] == "secrets")
    assert secrets["secret"] == {"secretName": placeholder["metadata"]["name"], "defaultMode": 0o440}


def test_a_node_asks_for_gpus_and_is_given_time_to_end() -> None:
    (container,) = pod_of(*PODS[0])["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == VALUES["nodes"]["gpus"] == 1
    for pod, name, file in ((PODS[0], "coe-node", "node.yaml"), (PODS[1], "coe-front", "front.yaml")):
        seconds = configuration(name, file)["http"].get("shutdown_seconds", 30)
        assert pod_of(*pod)["terminationGracePeriodSeconds"] >= seconds + 20
    assert objects()["PodDisruptionBudget", "coe-node"]["spec"]["maxUnavailable"] == 1


def test_the_chart_is_of_the_packages_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert VALUES["image"] == f"coe-server:{version}-gpu"
    assert chart["kubeVersion"] == f">={VERSIONS[0]}.0-0"
