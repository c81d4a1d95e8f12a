"""Lets a run load what it will not save.

Megatron 0.19 asks the switches of saving, --no-save-optim and --no-save-rng, when it loads, too. A
run that is resumed with the first then trains on with an optimizer whose memory nobody has filled,
which shows as NaN some steps later; with the second its random numbers start anew. While a
checkpoint is loaded the switches are off here; what to leave out then is said by --no-load-optim
and --no-load-rng, and by the checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron.training import get_args
from megatron.training import training as loop

from moe_megatron.mcore.replaced import replaced

_SWITCHES = ("no_save_optim", "no_save_rng")


@contextmanager
def complete_loading() -> Iterator[None]:
    """Load optimizer and random numbers whatever is saved later, meanwhile."""
    original = loop.load_checkpoint

    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        ours = get_args()
        saved = {name: getattr(ours, name) for name in _SWITCHES}
        for name in _SWITCHES:
            setattr(ours, name, None)
        try:
            return original(*args, **kwargs)
        finally:
            for name, value in saved.items():
                setattr(ours, name, value)

    with replaced(loop, "load_checkpoint", load_checkpoint):
        yield
