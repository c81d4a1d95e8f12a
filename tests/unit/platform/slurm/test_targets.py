"""The Prometheus target of a killed attempt is removed, and no other."""

from pathlib import Path

from moe_megatron.platform.slurm.targets import remove_targets
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE


def test_target_and_its_copy_are_removed_and_others_stay(tmp_path: Path) -> None:
    run_dir, discovery = tmp_path / "run", tmp_path / "targets"
    run_dir.mkdir()
    discovery.mkdir()
    for path in (run_dir / TARGETS_FILE, discovery / "run.json"):
        path.write_text("ours")
    (discovery / "other.json").write_text("theirs")
    remove_targets(run_dir, discovery)
    assert not (run_dir / TARGETS_FILE).exists()
    assert [path.name for path in discovery.iterdir()] == ["other.json"]
    remove_targets(run_dir, discovery)  # nothing is left to remove
    remove_targets(tmp_path / "absent", None)


def test_target_that_cannot_be_removed_is_reported(tmp_path: Path, caplog) -> None:
    (tmp_path / TARGETS_FILE).mkdir()
    remove_targets(tmp_path, None)
    assert "was not removed" in caplog.text
