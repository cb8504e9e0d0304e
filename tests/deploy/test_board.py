"""The Grafana board and the alerts name what there is; deploy/check_board.py asks a real Prometheus every query."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from coe_server.metrics import METRICS
from deploy.check_board import filled_in, panels, queries

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
SERVED = {metric.name + suffix: metric for metric in METRICS for suffix in SUFFIXES[metric.kind]}


@pytest.fixture(scope="module")
def board(root):
    return json.loads((root / "deploy/grafana/dashboards/coe.json").read_text())


@pytest.fixture(scope="module")
def rules(root):
    (group,) = yaml.safe_load((root / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return group["rules"]


def every_query(rules):
    return [query for _, query in queries()] + [rule["expr"] for rule in rules]


def test_every_metric_that_is_asked_for_is_one_we_serve(rules):
    asked = set().union(*(re.findall(r"\bcoe_\w+", query) for query in every_query(rules)))
    assert len(asked) >= 12
    assert asked <= SERVED.keys()


def test_every_label_that_is_asked_for_is_one_the_metric_has(rules):
    for query in every_query(rules):
        names = re.findall(r"\bcoe_\w+", query)
        had = {"le"}.union(*(SERVED[name].labels for name in names))
        selected = set(re.findall(r'(\w+)=~?"', query)) - {"job"}
        grouped = {label for found in re.findall(r"(?:by|on) \(([\w, ]+)\)", query) for label in found.split(", ")}
        assert selected | grouped <= had, query


def test_the_story_is_on_one_screen(board):
    panels = board["panels"]
    assert max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) <= 24  # rows of 38 pixels: 912
    cells = [cell for panel in panels for cell in cells_of(panel["gridPos"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(column for column, _ in cells) == 23
    told = " ".join(panel["title"] for panel in panels)
    for part in ("Traffic by expert", "Why", "bound", "Where each expert is", "Budget", "Drift", "Latency", "Trouble"):
        assert part in told


def test_learning_is_a_row_of_its_own_that_is_closed_at_first(board):
    (row,) = [panel for panel in board["panels"] if panel["type"] == "row"]
    assert (row["title"], row["collapsed"]) == ("Learning", True)
    cells = [cell for panel in row["panels"] for cell in cells_of(panel["gridPos"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    asked = " ".join(target["expr"] for panel in row["panels"] for target in panel["targets"])
    for metric in ('reason="explored"', "coe_learning_ratings", "coe_learning_steps", "coe_learning_interval_width"):
        assert metric in asked


def cells_of(at):
    columns, rows = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
    return [(column, row) for column in columns for row in rows]


def test_every_panel_says_what_it_shows_and_asks_the_provisioned_source(root, board):
    (source,) = yaml.safe_load((root / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    shown = list(panels(board))
    assert len({panel["id"] for panel in shown}) == len(shown) >= len(board["panels"])
    for panel in shown:
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_the_composition_loads_the_board_without_a_click(root):
    services = yaml.safe_load((root / "compose.yaml").read_text())["services"]
    (provider,) = yaml.safe_load((root / "deploy/grafana/provisioning/dashboards/coe.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/coe.json"


def test_each_alert_has_advice(root, rules):
    advice = (root / "docs/operate.md").read_text()
    assert [rule["alert"] for rule in rules if f"`{rule['alert']}`" not in advice] == []


def test_prometheus_understands_rules_and_queries(root, rules, tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    panels = [{"record": f"panel:{n}", "expr": filled_in(query, 60)} for n, (_, query) in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": [*rules, *panels]}]}))
    for command in (("rules", file), ("config", "--syntax-only", root / "deploy/prometheus/prometheus.yml")):
        done = subprocess.run([promtool, "check", *command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_query_finds_data_in_a_prometheus_that_scraped_a_real_run(root):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    done = subprocess.run(
        [sys.executable, "-m", "deploy.check_board"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
