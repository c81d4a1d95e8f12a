"""Work that is done once in the fork server, which imports this module last, for all ranks.

Whenever a run starts, Megatron reads the help texts of its 900 flags from its own source, three
times. That takes as long as everything else in a run of a few steps on tiny shapes. Source does not
change during the life of a process, so it is read once, in the server.
"""

import functools
import inspect

from moe_megatron.mcore.loop.arguments import check_flags_exist

inspect.getsource = functools.cache(inspect.getsource)  # type: ignore[assignment]
check_flags_exist(["--num-layers"])
