"""The smallest whole folders of some kinds, for tests to damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from moe_megatron.telemetry.history.layout import SUM_STEPS, Description, HistoryLayout
from moe_megatron.telemetry.history.location import history_location
from moe_megatron.telemetry.history.store import HistoryStore


def history(folder: Path) -> Path:
    """A routing history of three steps."""
    layout = HistoryLayout(
        layers=(1, 2), num_experts=4, top_k=1, quantities=(), sum_steps=SUM_STEPS
    )
    started = Description(layout=layout, first_step=1, last_step=0)
    store = HistoryStore(history_location(folder), started, create=True)
    rows: dict[str, Any] = {
        "tokens": np.full(3, 8),
        "assigned": np.full((3, 2), 8),
        "dropped": np.zeros((3, 2), int),
        "tokens_per_expert": np.full((3, 2, 4), 2, np.int32),
    }
    store.write({name: (0, values) for name, values in rows.items()}, 3)
    return folder


def tokenizer(folder: Path) -> Path:
    """A tokenizer of two words."""
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.add_special_tokens(["</s>"])
    (folder / "tokenizer.json").write_text(backend.to_str())
    return folder


def moe_model_config(folder: Path) -> None:
    """The configuration of a `MoEModel`."""
    values = {"model_type": "moe_megatron", "model": {}, "moe": {}, "vocab_size": 8}
    (folder / "config.json").write_text(json.dumps(values))
