"""The full routing history of a run: counts of every step, layer and expert, in one Zarr group.

`HistorySink` writes it during training, and `RoutingHistory` reads any window of it, even while it
is being written. `layout` defines its arrays, `location` parses addresses, and `store` is the only
module that uses TensorStore.
"""

from moe_megatron.telemetry.history.location import HISTORY_FOLDER
from moe_megatron.telemetry.history.reader import RoutingHistory
from moe_megatron.telemetry.history.sink import HistorySink

__all__ = ["HISTORY_FOLDER", "HistorySink", "RoutingHistory"]
