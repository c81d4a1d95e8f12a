"""Processes that a trainer starts on this machine: they train, and hand back what came of it.

Files carry model and result (`handover`); what a process does is in `rank`. It does not know who
trains, nor how many processes suit whom.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from moe_megatron.config import RunConfig
from moe_megatron.errors import AGAIN, INTERRUPTED, FaultError
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.model.storage import WeightMap
from moe_megatron.run.folder import make_run_dir
from moe_megatron.run.launch import launch
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import RunResult
from moe_megatron.training import rank
from moe_megatron.training.handover import Handover


def train_in_processes(
    number: int,
    model: MoEModel,
    adapters: Mapping[str, Tensor],
    config: RunConfig,
    data: PreparedData,
    *,
    fresh: bool,
) -> tuple[RunResult, WeightMap]:
    """Start processes, wait for them, and give what they have trained.

    Args:
        number: Of processes.
        model: The model to train; it is not changed.
        adapters: Tensors of its adapters, with which a run of adapters begins.
        config: The run.
        data: Its data.
        fresh: If the run folder already holds a run, use the next free name instead.

    Returns:
        The result, and the trained weights; of a run with adapters, their tensors.

    Raises:
        MoEError: The processes refused, or ended without a result.
    """
    beside = Path(config.run_dir).absolute().parent  # a disk that is made for models
    make_run_dir(beside)
    with TemporaryDirectory(prefix=".handover-", dir=beside) as folder:
        handover = Handover(Path(folder))
        handover.give(model, data, adapters)
        ended = launch(
            config,
            ["-m", rank.__name__, "--handover", str(handover.folder)],
            num_processes=number,
            fresh=fresh,
            prepared=True,
            say=lambda line: None,
        )
        found = handover.taken_back()
    if found is None:
        raise failure(ended.code, ended.reason, ended.run_dir)
    return found


def failure(code: int, reason: str, run_dir: Path) -> BaseException:
    """What to raise where processes ended without a result."""
    if code in (AGAIN, INTERRUPTED):
        return KeyboardInterrupt()
    return FaultError(
        f"the processes that trained have ended without a result: {reason or f'code {code}'}. The "
        f"model keeps the weights it had before; what they said is in {run_dir / 'logs'}."
    )
