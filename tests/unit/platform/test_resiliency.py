"""Where nvidia-resiliency-ext is missing, what needs it says so before anything is started."""

import sys
from pathlib import Path

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.platform.ft_launcher import Timeouts, ft_launcher_command
from moe_megatron.run.launch import launch


@pytest.mark.parametrize("restart", ["ft_launcher", "in_process"])
def test_run_that_needs_the_missing_package_is_refused_with_the_command_that_installs_it(
    restart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia_resiliency_ext", None)  # as if it were not there
    settings = {"recovery.restart": restart, "checkpoint.save_interval": 2}
    given = {**settings, "run_dir": str(tmp_path / "run")}
    config = apply_overrides(load_config("test_tiny"), given)
    words = (
        rf"recovery.restart: {restart} needs nvidia-resiliency-ext, which is not installed here. "
        r"Install it with: uv pip install --python-platform \S+ nvidia-resiliency-ext==0.6.0"
    )
    with pytest.raises(BackendUnavailableError, match=words):
        launch(config, ["no_program.py"], num_processes=2, say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_command_tells_how_long_a_rank_may_be_where() -> None:
    timeouts = Timeouts(sections={"setup": 60.0, "step": float("inf")}, outside=30.0)
    words = ft_launcher_command(2, ["program.py", "--config", "c.yaml"], timeouts)
    assert words[words.index("--ft-rank-section-timeouts") + 1] == "setup:60,step:none"
    assert words[words.index("--ft-rank-out-of-section-timeout") + 1] == "30"
    assert words[-3:] == ["program.py", "--config", "c.yaml"]
