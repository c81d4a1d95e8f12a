"""`DistributedMoETrainer`: `MoETrainer` over several processes, which it starts itself.

Under `torchrun` or a batch system it takes the processes that are there. Elsewhere, in a notebook
for example, it starts them on this machine, waits for them, and puts what they have trained into
the model. Files carry model and result (`handover`); what a process does is in `rank`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.arguments import explained, whole
from moe_megatron.errors import AGAIN, INTERRUPTED, ConfigError, FaultError, TopologyError
from moe_megatron.mcore import world
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap
from moe_megatron.platform.device import choose_num_processes, detect_device
from moe_megatron.run.folder import make_run_dir
from moe_megatron.run.launch import launch
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import RunResult
from moe_megatron.training import rank
from moe_megatron.training.balancing import Balancing
from moe_megatron.training.handover import Handover
from moe_megatron.training.trainer import MoETrainer

_LAYOUT = {
    "expert_parallel_size": "parallel.expert_parallel_size",
    "model_parallel_size": "parallel.tensor_parallel_size",
    "pipeline_stages": "parallel.pipeline_parallel_size",
}


@explained
class DistributedMoETrainer(MoETrainer):
    """Trains a `MoEModel` with several processes, in any parallel layout.

        trainer = DistributedMoETrainer(model, world_size=2, expert_parallel_size=2)
        result = trainer.train(texts, max_steps=100)

    It is used as `MoETrainer` is. The processes that are left over by the sizes given here work on
    different sequences of a batch.

    Args:
        model: The model to train; its weights are replaced by the trained ones.
        world_size: Number of processes. None: those that a launcher has started, or one for each
            GPU of this machine, or two on a CPU.
        expert_parallel_size: Processes that share the experts of a layer.
        model_parallel_size: Processes that share each matrix (tensor parallelism).
        pipeline_stages: Groups of processes that have different layers (pipeline parallelism).
        load_balancing: As for `MoETrainer`, and so are all other arguments.
        router_z_loss_coef: As for `MoETrainer`.
        overrides: Fields of the configuration, such as {"parallel.context_parallel_size": 2}.
        **options: Further arguments of `MoETrainer`.

    Raises:
        ConfigError: An argument is invalid.
        TopologyError: The sizes do not fit each other, the model, or the processes that are there.
    """

    def __init__(
        self,
        model: MoEModel,
        world_size: int | None = None,
        expert_parallel_size: int = 1,
        model_parallel_size: int = 1,
        pipeline_stages: int = 1,
        *,
        load_balancing: Balancing | None = None,
        router_z_loss_coef: float = 0.01,
        overrides: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        sizes = {
            "expert_parallel_size": whole("expert_parallel_size", expert_parallel_size),
            "model_parallel_size": whole("model_parallel_size", model_parallel_size),
            "pipeline_stages": whole("pipeline_stages", pipeline_stages),
        }
        for name, field in _LAYOUT.items():
            if field in (overrides or {}):
                raise ConfigError(
                    f"overrides cannot set {field}, which is decided by {name} of "
                    "DistributedMoETrainer(...); leave it out of overrides."
                )
        layout = {_LAYOUT[name]: size for name, size in sizes.items()}
        super().__init__(
            model,
            load_balancing,
            router_z_loss_coef,
            overrides={**(overrides or {}), **layout},
            **options,
        )
        self._num_processes = _num_processes(world_size)
        self._with_overrides().parallel.validate_world(
            self._num_processes,
            num_experts=model.moe_config.num_experts,
            num_layers=model.model_config.num_layers,
        )

    @property
    def world_size(self) -> int:
        """Number of processes that train."""
        return self._num_processes

    def _trained(
        self, config: RunConfig, data: PreparedData, *, fresh: bool
    ) -> tuple[RunResult, WeightMap]:
        if _has_launcher() or self._num_processes == 1:
            return super()._trained(config, data, fresh=fresh)
        beside = Path(config.run_dir).absolute().parent  # a disk that is made for models
        make_run_dir(beside)
        with TemporaryDirectory(prefix=".handover-", dir=beside) as folder:
            handover = Handover(Path(folder))
            handover.give(self.model, data)
            ended = launch(
                config,
                ["-m", rank.__name__, "--handover", str(handover.folder)],
                num_processes=self._num_processes,
                fresh=fresh,
                prepared=True,
                say=lambda line: None,
            )
            found = handover.taken_back()
        if found is None:
            raise _failure(ended.code, ended.reason, ended.run_dir)
        return found


def _num_processes(wanted: int | None) -> int:
    """The number of processes that train.

    Raises:
        ConfigError: It is not a positive number.
        TopologyError: A launcher has started another number, or there are fewer GPUs.
    """
    wanted = None if wanted is None else whole("world_size", wanted)
    if _has_launcher():
        if wanted not in (None, world.size()):
            raise TopologyError(
                f"world_size is {wanted}, but this program was started in {world.size()} "
                f"process(es), which is what it trains with; start it with `torchrun "
                f"--nproc-per-node {wanted}`, or leave world_size out."
            )
        return world.size()
    return choose_num_processes(detect_device().value, wanted).value


def _has_launcher() -> bool:
    """Whether torchrun or a batch system has started this process as one of several."""
    return world.size() > 1 or "RANK" in os.environ


def _failure(code: int, reason: str, run_dir: Path) -> BaseException:
    """What to raise where processes ended without a result."""
    if code in (AGAIN, INTERRUPTED):
        return KeyboardInterrupt()
    return FaultError(
        f"the processes that trained have ended without a result: {reason or f'code {code}'}. The "
        f"model keeps the weights it had before; what they said is in {run_dir / 'logs'}."
    )
