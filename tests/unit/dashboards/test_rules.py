"""Rules: promtool's own checks and tests pass, and those tests notice when a rule is changed."""

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_megatron.config import load_config, to_mapping
from moe_megatron.dashboards.artifacts import dashboards, repository_files
from moe_megatron.dashboards.build import write_files
from moe_megatron.dashboards.rule_tests import CASES
from moe_megatron.dashboards.rules import RUNBOOK, Thresholds, alert_file, alerts

ROOT = Path(__file__).parents[3]
ALERTS = alerts(Thresholds())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Generated files, and promtool to judge them."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool; apt-get install --no-install-recommends prometheus")
    write_files(tmp_path, repository_files())
    return tmp_path / "prometheus"


def promtool(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True)


def alert_tests(folder: Path) -> subprocess.CompletedProcess[str]:
    return promtool("test", "rules", folder / "tests" / "alerts.yml")


def test_promtool_accepts_rules_and_configuration(folder):
    rules = promtool("check", "rules", "--lint=all", "--lint-fatal", *folder.glob("rules/*.yml"))
    assert rules.returncode == 0, rules.stderr
    assert f"{len(ALERTS)} rules found" in rules.stdout
    config = promtool("check", "config", folder / "prometheus.yml")
    assert config.returncode == 0, config.stderr


def test_alerts_fire_when_they_should_and_only_then(folder):
    answer = alert_tests(folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def never(rule: dict[str, Any]) -> None:
    rule["expr"] = f"({rule['expr']}) and on () (vector(1) > 2)"


def always(rule: dict[str, Any]) -> None:
    metric = re.search(r"\w+\{job=\"moe-train\"[^}]*\}|run_layer:[\w:]+", rule["expr"])[0]
    rule["expr"] = f"max by (job, cluster, run, layer) ({metric}) > -1"


def at_once(rule: dict[str, Any]) -> None:
    rule.pop("for", None)


@pytest.mark.parametrize(
    "change", [never, *(pytest.param(it, marks=pytest.mark.deep) for it in (at_once, always))]
)
def test_alerts_that_are_changed_fail_their_tests(folder, change):
    path = folder / "rules" / "alerts.yml"
    rules = yaml.safe_load(path.read_text())
    before = {rule["alert"]: dict(rule) for rule in rules["groups"][0]["rules"]}
    for rule in rules["groups"][0]["rules"]:
        change(rule)
    changed = {r["alert"] for r in rules["groups"][0]["rules"] if r != before[r["alert"]]}
    assert len(changed) >= 7
    path.write_text(yaml.safe_dump(rules))
    assert set(re.findall(r"alertname: *(\w+)", alert_tests(folder).stderr)) == changed


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    assert {case.alert for case in CASES} == {alert.name for alert in ALERTS}
    for case in CASES:
        assert any(firings for firings in case.expected.values()), case.alert
        assert any(not firings for firings in case.expected.values()), case.alert


@pytest.mark.parametrize("alert", ALERTS, ids=lambda a: a.name)
def test_alert_says_what_to_do_with_options_that_exist(alert):
    assert alert.summary.startswith("{{ $labels.run }}: ")
    assert len(alert.action) > 60
    config = to_mapping(load_config("demo_moe"))
    for section, field in re.findall(r"\b(moe|checkpoint|telemetry|training)\.(\w+)", alert.action):
        assert field in config[section], f"there is no {section}.{field}"


def test_page_lists_alerts_and_thresholds_as_they_are():
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for alert in ALERTS:
        hold = Thresholds().span(alert.hold) if alert.hold else "-"
        assert re.search(
            rf"^\\| `{alert.name}` \\| {alert.severity} \\| .* \\| {hold} \\|$", page, re.M
        )
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| .+ \|$", page, re.M)
    for field in fields(Thresholds):
        assert (field.name, f"{field.default:g}") in rows


def test_amtool_accepts_the_configuration(folder):
    if shutil.which("amtool") is None:
        pytest.skip("no amtool; apt-get install --no-install-recommends prometheus-alertmanager")
    words = ["amtool", "check-config", str(folder / "alertmanager.yml")]
    answer = subprocess.run(words, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("scale", "seconds", "text"),
    [(1, 300, "5m"), (1, 3600, "1h"), (1, 7200, "2h"), (1, 90, "90s"), (1 / 60, 300, "5s"),
     (1 / 60, 1800, "30s"), (0.01, 60, "600ms")],
)  # fmt: skip
def test_times_are_scaled_and_written_as_prometheus_reads_them(scale, seconds, text):
    assert Thresholds(time_scale=scale).span(seconds) == text


def test_every_alert_has_a_section_of_the_runbook_and_every_section_an_alert() -> None:
    page = (ROOT / RUNBOOK).read_text()
    sections = dict(re.findall(r"^## (MoE\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert sections.keys() == {alert.name for alert in ALERTS}
    for alert in ALERTS:
        assert alert.runbook_url == f"{RUNBOOK}#{alert.name.lower()}"
        for part in ("**Means:**", "**Look:**", "**Do:**"):
            assert part in sections[alert.name], alert.name


def test_runbook_names_panels_that_exist() -> None:
    titles = {panel.title for board in dashboards() for part in board.sections
              for panel in part.panels}  # fmt: skip
    text = (ROOT / RUNBOOK).read_text()
    quoted = [" ".join(words.split()) for words in re.findall(r'"([A-Z][^"]+)"', text)]
    assert len(quoted) > 5
    assert [words for words in quoted if words not in titles] == []


def test_rules_of_the_repository_lead_to_the_runbook() -> None:
    rules = alert_file(Thresholds())["groups"][0]["rules"]
    links = [rule["annotations"]["runbook_url"] for rule in rules]
    assert len(set(links)) == len(links) == len(ALERTS)
