"""The full routing history of a run: counts of every step, layer and expert, in one Zarr group.

`HistorySink` writes it while training goes on, `RoutingHistory` reads any window of it, also while
it is being written. `layout` says what lies where, `location` turns addresses into storage,
`store` is the only module that knows TensorStore.
"""

from moe_megatron.telemetry.history.location import HISTORY_FOLDER
from moe_megatron.telemetry.history.reader import RoutingHistory
from moe_megatron.telemetry.history.sink import HistorySink

__all__ = ["HISTORY_FOLDER", "HistorySink", "RoutingHistory"]
