"""Work that is done once in the fork server, which imports this module last, for all ranks.

The parser of Megatron's 900 flags is made, by which each run is checked. And ranks do not poll for
each other's messages: they share their cores with those of another worker of pytest. Nor do they
read an index of data again that they have just written: nothing else writes there.
"""

from moe_megatron.mcore.cpu.fast import shared_memory
from moe_megatron.mcore.loop import index_cache
from moe_megatron.mcore.loop.arguments import known_flags

shared_memory._SPIN_SECONDS = 0.0
index_cache._TICK_NS = 0
known_flags()
