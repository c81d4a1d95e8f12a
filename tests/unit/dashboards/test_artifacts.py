"""The committed files are those that the code writes, and a difference is named."""

import sys
from pathlib import Path, PurePosixPath

import yaml

from moe_megatron.cli.main import main
from moe_megatron.dashboards.artifacts import dashboard_json, repository_files
from moe_megatron.dashboards.check import all_panels

ROOT = Path(__file__).parents[3]


def test_committed_files_are_what_the_code_writes(capsys):
    assert main(["grafana", "build", "--check", "--folder", str(ROOT / "grafana")]) == 0
    assert "no faults" in capsys.readouterr().out


def test_build_writes_everything_once(tmp_path, capsys):
    folder = ["--folder", str(tmp_path)]
    assert main(["grafana", "build", *folder]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(repository_files())
    assert main(["grafana", "build", *folder]) == 0
    assert "up to date" in capsys.readouterr().out


def test_check_names_changed_missing_and_left_over_files(tmp_path, capsys):
    folder = ["--folder", str(tmp_path)]
    main(["grafana", "build", *folder])
    (tmp_path / "dashboards" / "cost.json").unlink()
    (tmp_path / "dashboards" / "old.json").write_text("{}")
    changed = tmp_path / "prometheus" / "rules" / "alerts.yml"
    changed.write_text(changed.read_text().replace("for: 2m", "for: 3m"))
    assert main(["grafana", "build", "--check", *folder]) == 2
    errors = capsys.readouterr().err
    assert "cost.json is missing; run moe-megatron grafana build" in errors
    assert "old.json is written by no code; remove it" in errors
    assert "alerts.yml is not what the code writes" in errors


def test_check_without_the_parser_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "promql_parser", None)
    for name in ("check", "check_rules", "promql"):
        monkeypatch.delitem(sys.modules, f"moe_megatron.dashboards.{name}", raising=False)
    assert main(["grafana", "build", "--check", "--folder", str(tmp_path)]) == 2
    assert "needs the package promql-parser; install it with" in capsys.readouterr().err


def test_yaml_files_read_back_as_one_document():
    for name, text in repository_files().items():
        if name.suffix == ".yml":
            assert text.startswith("# Written by `moe-megatron grafana build`")
            assert isinstance(yaml.safe_load(text), dict)


def test_alertmanager_routes_and_hides_by_names_that_exist():
    config = yaml.safe_load(repository_files()[PurePosixPath("prometheus/alertmanager.yml")])
    rules = yaml.safe_load(repository_files()[PurePosixPath("prometheus/rules/alerts.yml")])
    names = {rule["alert"] for rule in rules["groups"][0]["rules"]}
    for rule in config["inhibit_rules"]:
        matchers = rule["source_matchers"] + rule["target_matchers"]
        assert {n for m in matchers for n in m.split('"')[1].split("|")} <= names


def test_every_panel_says_what_it_shows_and_from_which_metrics():
    for dashboard in dashboard_json().values():
        for panel in all_panels(dashboard):
            if panel["type"] != "row":
                text, metrics = panel["description"].split("\n\nMetrics: ")
                assert text.endswith(".")
                assert all(f"{name}{{" in str(panel["targets"]) for name in metrics.split(", "))


def test_containers_mount_what_exists_where_it_is_looked_for():
    compose = yaml.safe_load((ROOT / "grafana" / "compose.yaml").read_text())
    mounts = [m for service in compose["services"].values() for m in service["volumes"]]
    places = {mount.split(":")[0]: mount.split(":")[1] for mount in mounts}
    sources = [source for source in places if source.startswith("./")]
    assert [s for s in sources if not (ROOT / "grafana" / s).exists()] == []
    provider = repository_files()[PurePosixPath("provisioning/dashboards/moe.yml")]
    path = yaml.safe_load(provider)["providers"][0]["options"]["path"]
    assert places["./dashboards"] == path
