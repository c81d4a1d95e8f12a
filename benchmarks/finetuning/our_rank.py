"""Our side of the comparison with `peft`: a run with adapters, as `moe-megatron train` makes it.

Started by ranks.py. Before the first step it writes its adapter in PEFT's format, and after each
step the rows that the model was given, so that the other side begins and goes on with the same.
"""

import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn.utils.rnn import pad_sequence

from benchmarks import ranks
from benchmarks.megatron_rank import Clock
from moe_megatron.adapters.base_hash import hash_of_folder
from moe_megatron.adapters.from_run import adapter_of
from moe_megatron.adapters.hf_layouts import layouts_of_folder
from moe_megatron.adapters.peft_folder import write_folder
from moe_megatron.adapters.to_peft import to_peft
from moe_megatron.config import CONFIG_FILE, RunConfig, apply_overrides, load_config
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import StepEnd
from moe_megatron.mcore.state.checkpoint import latest_checkpoint
from moe_megatron.mcore.tuning.adapters.whole_adapters import collect_adapters
from moe_megatron.run.start import Attachments, start

ADAPTER = "adapter"
"""The first adapter, in the folder of the comparison."""


def rows_file(folder: Path, step: int) -> Path:
    """What a step is of: tokens, labels and loss_mask, each [rows, length of the longest]."""
    return folder / f"rows{step}.npz"


def main() -> None:
    """Run the task of this rank."""
    task = ranks.task()
    folder = Path(task["folder"])
    newest = latest_checkpoint(Path(task["overrides"]["checkpoint.load"]))
    assert newest is not None
    config = apply_overrides(load_config(newest / CONFIG_FILE), task["overrides"])
    clock = Beginning(folder, newest, config)
    history = start(config, attached=Attachments(callbacks=[clock])).history
    ranks.report(
        {
            "wall": clock.wall,
            "processor": clock.processor,
            "losses": clock.losses,
            "learning_rates": [it.learning_rate for it in history.steps],
            "tokens": clock.tokens,
            "begins": [*clock.begins, ("end", time.monotonic())],
        }
    )
    world.leave()


class Beginning(Clock):
    """A clock that hands over the adapter and the rows."""

    def __init__(self, folder: Path, base: Path, config: RunConfig) -> None:
        super().__init__()
        self._folder, self._base, self._config = folder, base, config
        self._rows: dict[str, np.ndarray] = {}
        self.tokens: list[int] = []
        self.begins: list[tuple[str, float]] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Write the adapter, and watch what the model is given."""
        layouts = layouts_of_folder(self._base)
        adapter = adapter_of(
            collect_adapters(model), self._config.adapter, self._config.architecture
        )
        written = to_peft(adapter, layouts.fused, is_moe=layouts.family.is_moe)
        shutil.rmtree(self._folder / ADAPTER, ignore_errors=True)
        write_folder(self._folder / ADAPTER, written, hash_of_folder(self._base))
        model[0].register_forward_pre_hook(self._keep, with_kwargs=True)
        super().on_train_start(model, start_step)
        self.begins.append(("steps", time.monotonic()))

    def on_step_end(self, event: StepEnd) -> None:
        """Note the time of the step, then write its rows, and pass the turn on."""
        self.note(event)
        np.savez(rows_file(self._folder, event.step), **self._rows)
        self.restart(event.step)

    def _keep(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Conversations stand one after another in what Megatron's model is given."""
        bounds = named["packed_seq_params"].cu_seqlens_q.tolist()
        held = [slice(a, b) for a, b in pairwise(bounds) if not named["padding_mask"][0, a]]
        tensors = {"tokens": given[0], **{it: named[it] for it in ("labels", "loss_mask")}}
        self.tokens.append(sum(it.stop - it.start for it in held))
        self._rows = {
            name: pad_sequence([tensor[0, it] for it in held], batch_first=True).numpy()
            for name, tensor in tensors.items()
        }


if __name__ == "__main__":
    main()
