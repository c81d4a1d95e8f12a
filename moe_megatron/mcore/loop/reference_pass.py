"""Before a training on preferences: what the reference, its first weights, thinks of every pair.

Megatron's own schedule makes forward passes over the rows of all datasets, in the layout that
trains. What comes of it is kept beside the data (`data/instructions/references.py`) under the
fingerprint of the weights, and found again by later runs. A checkpoint notes the fingerprint: a
training that goes on has the reference that it began with.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.training import get_args, get_tokenizer
from torch import Tensor

from moe_megatron.config.checkpoint_files import REFERENCE_FILE, iteration_dir
from moe_megatron.config.preferences import PreferencesConfig
from moe_megatron.data.instructions.packed_row import row_of
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.references import (
    find_reference,
    reference_file,
    save_reference,
)
from moe_megatron.data.instructions.stored import StoredPairs
from moe_megatron.errors import DataError
from moe_megatron.files import publish
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.forward import forward_step
from moe_megatron.mcore.state.fingerprint import weights_fingerprint
from moe_megatron.mcore.tuning.preference_loss import LossParts, pair_scores, preference_loss
from moe_megatron.model.evaluating import evaluating
from moe_megatron.reading import read_json

_MICRO_BATCHES = 8
"""Of a call of Megatron's schedule, for each process of a pipeline."""


class PreferenceObjective:
    """The loss of a run on preferences, once it knows what the reference thinks."""

    def __init__(self, config: PreferencesConfig) -> None:
        self._config = config
        self.reference_N2: Tensor | None = None
        """float32, log-probabilities of both answers of all pairs of the run."""

    def __call__(self, batch: Mapping[str, Tensor], losses: Tensor) -> LossParts:
        """The loss of a micro-batch, from the losses of its tokens."""
        assert self.reference_N2 is not None, "the pass over the reference comes before training"
        scores = pair_scores(batch, losses)
        return preference_loss(scores, self.reference_N2[scores.numbers_P], self._config)


class ReferencePass(Callback):
    """Gives the objective its reference before the first step.

    Args:
        prefixes: The datasets of pairs, in the order in which pairs are numbered.
        objective: Is given what the reference thinks.
        vocab_size: Entries of the vocabulary.
        load: The checkpoint that the run begins with, if any.
        checkpoints: Where the run's own are; None: nowhere.
        say: Called on rank 0 with a line.
    """

    def __init__(
        self,
        prefixes: Sequence[Path],
        objective: PreferenceObjective,
        vocab_size: int,
        *,
        load: Path | None,
        checkpoints: Path | None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._prefixes = tuple(dict.fromkeys(prefixes))
        self._objective = objective
        self._vocab_size = vocab_size
        self._load, self._checkpoints = load, checkpoints
        self._say = say
        self._weights = ""

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Find what the reference thinks, or compute it.

        Raises:
            DataError: It is not there for a training that goes on, belongs to another reference, or
                cannot be written.
        """
        if self._objective.reference_N2 is not None:
            return  # after a rollback
        noted = self._on_first(self._noted) if start_step else ""
        self._weights = noted or weights_fingerprint(model, self._vocab_size)
        found = self._found()
        if found is None and noted:
            missing = reference_file(self._prefixes[0], noted, self._places)
            raise DataError(
                f"this training on preferences goes on from {self._load}, and what its reference "
                f"thinks of the data is not there ({missing}); bring that file back beside the "
                "data, or start a new run with --finetune, whose reference is that checkpoint."
            )
        if found is None:
            if world.rank() == 0:
                self._say(f"reference {self._weights}: computing log-probabilities of all pairs")
            found = self._computed(model)
            self._on_first(partial(self._save, found))
        elif world.rank() == 0:
            self._say(f"reference {self._weights}: its log-probabilities lie beside the data")
        self._objective.reference_N2 = found

    def on_checkpoint_end(self, step: int) -> None:
        """Note the reference in a checkpoint."""
        if self._checkpoints is not None and world.rank() == 0:
            note = json.dumps({"weights": self._weights})
            publish(iteration_dir(self._checkpoints, step) / REFERENCE_FILE, note)

    @property
    def _places(self) -> int:
        return int(get_args().seq_length) // 2

    def _noted(self) -> str:
        path = None if self._load is None else self._load / REFERENCE_FILE
        if path is None or not path.is_file():
            return ""
        try:
            return noted_reference(read_json(path))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} does not say with which reference the training began; start a new run "
                "with --finetune, whose reference is that checkpoint."
            ) from error

    def _found(self) -> Tensor | None:
        """What lies beside the data, on every rank; None if something is missing."""
        parts: list[np.ndarray] = []

        def look() -> str:
            for prefix in self._prefixes:
                part = find_reference(prefix, self._weights, self._places)
                if part is None or len(part) != len(StoredPairs(prefix)):
                    return ""
                parts.append(part)
            return "found"

        if not self._on_first(look):
            return None
        number = sum(len(StoredPairs(prefix)) for prefix in self._prefixes)
        found = torch.zeros(number, 2, device=world.device())
        if world.rank() == 0:
            found.copy_(torch.from_numpy(np.concatenate(parts)))
        dist.broadcast(found, src=0)
        return found

    def _save(self, found: Tensor) -> str:
        values, first = found.cpu().numpy(), 0
        for prefix in self._prefixes:
            last = first + len(StoredPairs(prefix))
            save_reference(prefix, self._weights, self._places, values[first:last].copy())
            first = last
        return ""

    @staticmethod
    def _on_first(work: Callable[[], str]) -> str:
        """What rank 0 finds, on every rank; a problem there is one everywhere."""
        said = ""
        if world.rank() == 0:
            try:
                said = f"+{work()}"
            except DataError as problem:
                said = f"-{problem}"
        said = world.agree_on_text(said)
        if said.startswith("-"):
            raise DataError(said[1:])
        return said[1:]

    def _computed(self, model: list[Any]) -> Tensor:
        """Log-probabilities of all pairs, [pairs, 2], on every rank."""
        args = get_args()
        rows = list(self._rows(args.seq_length))
        number = sum(len(StoredPairs(prefix)) for prefix in self._prefixes)
        sums = torch.zeros(number, 3, dtype=torch.float64, device=world.device())

        def collect(batch: Mapping[str, Tensor], losses: Tensor) -> LossParts:
            scores = pair_scores(batch, losses)
            times = torch.ones_like(scores.logps_P2[:, :1])
            sums.index_add_(0, scores.numbers_P, torch.cat((scores.logps_P2, times), 1).double())
            return losses.sum() * 0, torch.ones((), dtype=torch.int, device=losses.device), {}

        replicas, replica = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        micro_batches = _MICRO_BATCHES * mpu.get_pipeline_model_parallel_world_size()
        of_call = micro_batches * args.micro_batch_size
        for call in range(math.ceil(len(rows) / (of_call * replicas))):
            start = (call * replicas + replica) * of_call
            # Rows are repeated where there are none left, so that all ranks make equally many.
            mine = [rows[(start + it) % len(rows)] for it in range(of_call)]
            with torch.no_grad(), ExitStack() as stack:
                for chunk in model:
                    stack.enter_context(evaluating(chunk))
                get_forward_backward_func()(
                    forward_step_func=partial(forward_step, objective=collect),
                    data_iterator=[_batches(mine, args.micro_batch_size) for _ in model],
                    model=model,
                    num_microbatches=micro_batches,
                    seq_length=args.seq_length,
                    micro_batch_size=args.micro_batch_size,
                    decoder_seq_length=args.decoder_seq_length,
                    forward_only=True,
                )
        dist.all_reduce(sums)  # of tensor parallel ranks, all have the same
        return (sums[:, :2] / sums[:, 2:].clamp_min(1)).float()

    def _rows(self, length: int) -> Iterator[dict[str, np.ndarray]]:
        padding, first = int(get_tokenizer().eod), 0
        for prefix in self._prefixes:
            stored = StoredPairs(prefix)
            for numbers in packed_rows(stored, length).rows:
                yield row_of(stored, numbers, length, padding, first_pair=first)
            first += len(stored)


def noted_reference(note: Any) -> str:
    """The fingerprint in a note, which becomes a part of a file's name.

    Raises:
        ValueError: There is none.
    """
    found = note.get("weights") if isinstance(note, Mapping) else None
    if not isinstance(found, str) or not re.fullmatch(r"[0-9a-f]{16}", found):
        raise ValueError("no fingerprint")
    return found


def _batches(rows: Sequence[Mapping[str, np.ndarray]], size: int) -> Iterator[dict[str, Tensor]]:
    """Micro-batches of rows, as Megatron's data loaders give them."""
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        yield {name: torch.from_numpy(np.stack([row[name] for row in some])) for name in some[0]}
