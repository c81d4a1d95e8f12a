"""The doctor's report on this machine, and on installations it must complain about."""

import json
import re

import pytest

from moe_megatron.cli.verbs.doctor import collect, run, run_doctor


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("MOE_MEGATRON_DEVICE", "cpu")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a distribution's metadata first on the import path."""

    def make(name: str, version: str, module: str = "") -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if module:
            (tmp_path / module).mkdir()
            (tmp_path / module / "__init__.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)

    return make


def test_collect_here_finds_everything_and_says_what_is_used():
    report = collect()
    assert report["problems"] == []
    assert report["ok"]
    assert report["found"]["Megatron-Core"].startswith("0.19.")
    assert "gloo" in report["found"]["torch backends"]
    assert {
        name: report["used"][name]["value"] for name in ("device", "backend", "transformer")
    } == {
        "device": "cpu",
        "backend": "gloo",
        "transformer": "local",
    }
    assert all(choice["reason"] for choice in report["used"].values())


def test_run_doctor_json_is_the_collected_report(capsys):
    assert run_doctor(json_output=True) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {"ok", "found", "used", "memory", "problems"}
    assert printed["used"]["device"]["reason"] == "MOE_MEGATRON_DEVICE=cpu asks for it"


def test_run_doctor_table_names_choices_and_reasons(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run_doctor() == 0
    printed = capsys.readouterr().out
    for expected in ("Megatron-Core", "gloo", "precision", "Training can run on this machine."):
        assert expected in printed


def test_run_doctor_estimates_the_memory_of_a_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["--config", "demo_moe", "--num-processes", "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"memory: about \d\.\d GiB for training, .* \(2 process\(es\)", printed)
    assert "warning" not in printed


def test_run_doctor_warns_of_a_run_that_does_not_fit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["--config", "qwen3_30b_a3b", "--num-processes", "8"]) == 0
    assert "the system may kill the run" in capsys.readouterr().out


def test_run_doctor_of_a_run_that_cannot_be_says_why(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["--config", "demo_nothing"]) == 1
    assert "Problem: " in capsys.readouterr().out


def test_run_doctor_unknown_device_fails_with_remedy(capsys, monkeypatch):
    monkeypatch.setenv("MOE_MEGATRON_DEVICE", "tpu")
    monkeypatch.setenv("COLUMNS", "200")
    assert run_doctor() == 1
    assert "MOE_MEGATRON_DEVICE (tpu) must be cpu or cuda" in capsys.readouterr().out


def test_collect_wrong_megatron_is_a_problem(installed):
    installed("megatron-core", "0.16.1")
    report = collect()
    assert not report["ok"]
    assert report["problems"][0].startswith("megatron-core (0.16.1) must be 0.19.*; run make setup")


def test_collect_transformer_engine_without_core_is_a_problem(installed):
    installed("transformer-engine", "2.20.2", module="transformer_engine")
    report = collect()
    assert not report["ok"]
    assert (
        "transformer-engine (2.20.2) is installed without its core library"
        in (report["problems"][0])
    )


def test_collect_torch_does_not_load_is_a_problem(tmp_path, monkeypatch):
    import sys

    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open')")
    with monkeypatch.context() as patch:
        for name in [n for n in sys.modules if n == "torch" or n.startswith("torch.")]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(tmp_path)
        report = collect()
    assert (
        "torch cannot be imported (libtorch.so: cannot open); run make setup."
        in (report["problems"])
    )
