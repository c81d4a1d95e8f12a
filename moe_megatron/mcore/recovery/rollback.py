"""Goes back to a checkpoint in this process, with or without the data up to the bad step.

Megatron's loop ends with an exception, is given the state of the checkpoint, and starts again. The
steps from the checkpoint to the bad one are left out by Megatron's `iterations_to_skip`: they are
counted and their data is read, but nothing is computed. An attempt that starts later finds them in
the journal, so that it computes the same. It does not know why a run goes back, nor which
checkpoints can be trusted: it is given a function that chooses one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import get_args, get_timers
from megatron.training import training as loop

from moe_megatron.mcore.recovery.policy import Action, Answer
from moe_megatron.mcore.state import checkpoint
from moe_megatron.telemetry.journal import Event, read_events

_PARTIAL_LOADS = ("finetune", "no_load_optim", "no_load_rng")
"""Flags of a run's first load, from another run's checkpoint; its own are loaded whole."""
_MOST_STEPS = 1_000_000
"""That one rollback can have taken back; a journal that tells of more is damaged."""


class BackTo(Exception):  # noqa: N818 (it is a request, not an error)
    """Leaves Megatron's loop at a bad step, to go on from a checkpoint."""

    def __init__(self, step: int, answer: Answer) -> None:
        super().__init__(step)
        self.step = step
        self.answer = answer


class RollBack:
    """The way back of one run.

    Args:
        checkpoints: Folder in which the run saves; None if it saves nothing.
        run_dir: Folder of the run, for its journal; None for a run that starts anew.
        choose: Gives the checkpoint to go back to, the same on every rank, once there is one; None
            takes the newest one without a look into it.
    """

    def __init__(
        self,
        checkpoints: Path | None,
        run_dir: Path | None,
        choose: Callable[[], Path | None] | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._choose = choose or self._newest
        self._earlier = _rollbacks(run_dir)
        self.number = len(self._earlier)
        """Rollbacks of the run so far, in all its attempts."""
        self._providers: list[Callable[..., Any]] = []

    def left_out(self) -> list[int]:
        """Steps that earlier attempts left out, in order."""
        return [
            step
            for event in self._earlier
            if event.fields.get("left_out", True)
            for step in range(int(event.fields["to_step"]) + 1, int(event.fields["step"]) + 1)
        ]

    def find_problem(self, step: int) -> str | None:
        """Why the run cannot go back from this step; None if it can."""
        if self._newest() is None:
            return "there is no checkpoint to go back to"
        if step >= get_args().train_iters:
            return "no step is left to make after going back"
        return None

    def _newest(self) -> Path | None:
        return (
            None if self._checkpoints is None else checkpoint.latest_checkpoint(self._checkpoints)
        )

    @contextmanager
    def watching_data(self) -> Iterator[None]:
        """Remember how Megatron builds its data iterators, to build them anew."""
        original = loop.build_train_valid_test_data_iterators

        def build(provider: Callable[..., Any]) -> Any:
            self._providers.append(provider)
            return self._build(provider)

        self._original = original
        loop.build_train_valid_test_data_iterators = build
        try:
            yield
        finally:
            loop.build_train_valid_test_data_iterators = original

    def _build(self, provider: Callable[..., Any]) -> Any:
        """Build iterators; a loader draws a seed, which may not change a loaded random state."""
        if get_args().iteration == 0:
            return self._original(provider)
        with torch.random.fork_rng(devices=()):
            return self._original(provider)

    def go_back(
        self, request: BackTo, model: Any, optimizer: Any, rest: Sequence[Any]
    ) -> tuple[Path, int]:
        """Load a checkpoint and prepare the loop to start again after it.

        Args:
            request: The bad step.
            model: Model chunks.
            optimizer: The optimizer.
            rest: Arguments of Megatron's `train` after the optimizer.

        Returns:
            The checkpoint's folder and step.

        Raises:
            CheckpointError: None can be used.
        """
        scheduler, train_data, valid_data, _, config, context = rest[:6]
        loop.maybe_finalize_async_save(blocking=True)
        folder = self._choose()
        assert folder is not None
        with _loop_stopped(config, model, optimizer):
            step = _load(folder, model, optimizer, scheduler, context)
        self._renew((train_data, valid_data))
        if request.answer.action is Action.ROLL_BACK:
            get_args().iterations_to_skip.extend(range(step + 1, request.step + 1))
        self.number += 1
        return folder, step

    def _renew(self, iterators: tuple[Any, Any]) -> None:
        """Let the iterators that Megatron holds read from where the checkpoint is."""
        built = [self._build(provider)[:2] for provider in self._providers]
        for held, new in zip(iterators, zip(*built, strict=True), strict=True):
            for old, fresh in zip(held if isinstance(held, list) else [held], new, strict=True):
                if old is not None:
                    old.iterable = fresh.iterable
                    old.advance()


def _rollbacks(run_dir: Path | None) -> list[Event]:
    """The rollbacks in the journal of a run, since it was last started anew."""
    found: list[Event] = []
    for event in read_events(run_dir) if run_dir is not None else ():
        if event.kind == "resumed" and event.fields.get("step") == 0:
            found = []
        elif event.kind == "rolled_back" and _is_whole(event):
            found.append(event)
    return found


def _load(folder: Path, model: Any, optimizer: Any, scheduler: Any, context: Any) -> int:
    args = get_args()
    # Megatron expects the counters of a run that begins, and adds to the schedule's.
    args.consumed_train_samples = args.skipped_train_samples = args.consumed_valid_samples = 0
    scheduler.num_steps = 0
    changed = {
        "load": str(folder.parent),
        "ckpt_step": None,
        **dict.fromkeys(_PARTIAL_LOADS, False),
    }
    saved = {name: getattr(args, name) for name in changed}
    vars(args).update(changed)
    try:
        with checkpoint.explained_loading(folder):
            args.iteration, args.num_floating_point_operations_so_far = loop.load_checkpoint(
                model, optimizer, scheduler, checkpointing_context=context
            )
    finally:
        vars(args).update(saved)
    return int(args.iteration)


@contextmanager
def _loop_stopped(config: Any, model: Any, optimizer: Any) -> Iterator[None]:
    """Undo what Megatron's loop sets up at its start, which it insists on doing itself."""
    timer = get_timers()("interval-time", log_level=0)
    if timer._started:
        timer.stop()
    config.no_sync_func = config.grad_sync_func = config.param_sync_func = None
    gathers_ahead = loop.should_disable_forward_pre_hook(get_args())
    if gathers_ahead and any(chunk.remove_forward_pre_hook_handles for chunk in model):
        loop.disable_forward_pre_hook(model, optimizer)
    yield
    if gathers_ahead:
        loop.enable_forward_pre_hook(model)


def dummy_train_step(data: Any) -> None:
    """Read the data of a step that is left out, as `forward_step` does: on every rank.

    Megatron's own reads on the first tensor parallel rank only, and broadcasts.

    Args:
        data: The data iterator, a list of them, or None.
    """
    machine = get_rerun_state_machine()
    while machine.should_run_forward_backward(data):
        for iterator in data if isinstance(data, list) else [data]:
            for _ in range(get_num_microbatches() if iterator is not None else 0):
                next(iterator)


def _is_whole(event: Event) -> bool:
    """Whether it tells which steps were taken back, and not more than a run would."""
    step, to_step = event.fields.get("step"), event.fields.get("to_step")
    return isinstance(step, int) and isinstance(to_step, int) and 0 <= step - to_step <= _MOST_STEPS
