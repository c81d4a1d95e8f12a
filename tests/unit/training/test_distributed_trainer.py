"""What `DistributedMoETrainer` refuses before it starts a process, and how it reports an end."""

from pathlib import Path
from typing import Any

import pytest

from moe_megatron import FineTuner, MoEModel
from moe_megatron.distributed import DistributedMoETrainer, in_processes
from moe_megatron.errors import AGAIN, FAULT, ConfigError, MoEError, TopologyError
from moe_megatron.peft import MoELoRA
from moe_megatron.training.processes import failure


@pytest.fixture(scope="module")
def model() -> MoEModel:
    return MoEModel(hidden_size=16, num_experts=4, num_layers=2, num_attention_heads=2)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"world_size": 0}, ConfigError, "world_size"),
        ({"world_size": "2"}, ConfigError, "world_size"),
        ({"expert_parallel_size": 1.5}, ConfigError, "expert_parallel_size"),
        ({"world_size": 3, "expert_parallel_size": 2}, TopologyError, "3"),
        ({"world_size": 3, "expert_parallel_size": 3}, TopologyError, "experts"),
        ({"world_size": 2, "pipeline_stages": 3}, TopologyError, "2"),
        (
            {"world_size": 2, "overrides": {"parallel.tensor_parallel_size": 2}},
            ConfigError,
            "model_parallel_size of DistributedMoETrainer",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(
    options: dict[str, Any], kind: type[MoEError], expected: str, model: MoEModel
) -> None:
    with pytest.raises(kind, match=expected):
        DistributedMoETrainer(model, **options)


def test_any_trainer_trains_in_processes_whose_sizes_fit(model: MoEModel) -> None:
    lora = MoELoRA(model, r=2)
    assert in_processes(lora, world_size=2, expert_parallel_size=2) is lora
    assert lora.world_size == 2
    with pytest.raises(ConfigError, match=r"cannot set parallel.expert_parallel_size, .* in_proce"):
        in_processes(lora, world_size=2, expert_parallel_size=2)
    with pytest.raises(TopologyError, match="experts"):
        in_processes(FineTuner(model), world_size=3, expert_parallel_size=3)
    with pytest.raises(ConfigError, match=r"in_processes\(...\) needs a trainer, such as MoELoRA"):
        in_processes(model, world_size=2)  # type: ignore[type-var]


def test_two_processes_are_started_on_a_cpu(model: MoEModel) -> None:
    assert DistributedMoETrainer(model, world_size=1).world_size == 1
    assert DistributedMoETrainer(model, world_size=4, expert_parallel_size=4).world_size == 4


def test_processes_that_died_are_an_error_with_the_reason_and_the_place_of_logs() -> None:
    error = failure(FAULT, "rank 1 was killed by signal 9 (SIGKILL)", Path("runs/x"))
    assert isinstance(error, MoEError)
    assert "rank 1 was killed by signal 9" in str(error)
    assert "runs/x/logs" in str(error)
    assert isinstance(failure(AGAIN, "", Path("runs/x")), KeyboardInterrupt)
