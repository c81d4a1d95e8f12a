"""What surrounds Megatron's loop; runs with it are in tests/functional."""

import pytest

from moe_megatron.config import apply_overrides, dump_yaml, load_config
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.mcore.loop.job import JobOutcome
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import _with_vocabulary, start
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE
from moe_megatron.telemetry.values.records import RunInfo


@pytest.mark.parametrize(("error", "left"), [(CheckpointError, True), (KeyboardInterrupt, False)])
def test_run_that_fails_leaves_its_target_for_prometheus_to_miss(tmp_path, error, left):
    run_dir = tmp_path / "run"
    config = apply_overrides(
        load_config("test_tiny"),
        {"telemetry.metrics_port": 0, "telemetry.console": False, "run_dir": str(run_dir)},
    )
    info = RunInfo(
        run_dir=run_dir, total_steps=1, start_step=0, num_layers=2, num_experts=4, top_k=2,
        world_size=1, layers=(1, 2), description="",
    )  # fmt: skip

    def end(job, machine):
        job.sinks.start(info)
        assert job.sinks.flush()
        assert (run_dir / TARGETS_FILE).exists()
        raise error("the disk is full")

    data = PreparedData(paths=(), cache=tmp_path, vocab_size=512, end_of_document=0)
    with pytest.raises(error):
        start(config, data=data, backend=end)
    assert (run_dir / TARGETS_FILE).exists() is left


def test_size_of_the_vocabulary_is_that_of_the_loaded_model_or_else_of_the_tokenizer(tmp_path):
    fresh = load_config("test_tiny")
    assert _with_vocabulary(fresh, 300, None).data.vocab_size == 300
    release = tmp_path / "release"
    release.mkdir()
    assert _with_vocabulary(fresh, 300, release).data.vocab_size == 300
    saved = dump_yaml(apply_overrides(fresh, {"data.vocab_size": 384}))
    (release / "config.yaml").write_text(saved)
    assert _with_vocabulary(fresh, 300, release).data.vocab_size == 384
    with pytest.raises(
        ConfigError, match=r"tokenizer has 385 tokens and the model in .* only 384;"
    ):
        _with_vocabulary(fresh, 385, release)


def test_everything_that_was_chosen_is_written_and_returned(tmp_path):
    seen, said = [], []

    def record(job, machine):
        seen.append(job.config)
        return JobOutcome(steps=0, seconds=0.0, interrupted=False, profile=None)

    config = apply_overrides(
        load_config("test_tiny"), {"run_dir": str(tmp_path / "run"), "telemetry.console": False}
    )
    data = PreparedData(paths=(), cache=tmp_path, vocab_size=300, end_of_document=0)
    result = start(config, data=data, backend=record, say=said.append)
    assert result.config == seen[0] == load_config(tmp_path / "run" / "config.yaml")
    assert result.config.data.vocab_size == 300
    assert result.config.training.precision != "auto"
    assert result.config.moe.router.options["score_function"] == "softmax"
    assert [line.split(":")[0] for line in said] == [
        "device",
        "communication",
        "layers",
        "precision",
    ]


def test_router_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    overrides = {"run_dir": str(tmp_path / "run"), "moe.router": "nowhere"}
    with pytest.raises(ConfigError, match="there is no router 'nowhere'"):
        start(apply_overrides(load_config("test_tiny"), overrides))
    assert list(tmp_path.iterdir()) == []
