"""Work that is done once in the fork server, which imports this module last, for all ranks.

Megatron reads the help texts of its 900 flags from its own source. That takes as long as everything
else in a run of a few steps on tiny shapes. And ranks do not poll for each other's messages: they
share their cores with those of another worker of pytest.
"""

from moe_megatron.mcore.cpu.fast import shared_memory
from moe_megatron.mcore.loop.arguments import known_flags

shared_memory._SPIN_SECONDS = 0.0
known_flags()
