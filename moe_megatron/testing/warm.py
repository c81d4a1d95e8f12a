"""What ranks of tests find done already, besides imports: `fork_server` imports this module last.

At every start of a run Megatron reads the help texts of its 900 flags from its own source, three
times over. That takes as long as all else that a run of a few steps on tiny shapes does. Source
does not change while a process lives, so it is read once, in the server.
"""

import functools
import inspect

from moe_megatron.mcore.loop.arguments import check_flags_exist

inspect.getsource = functools.cache(inspect.getsource)  # type: ignore[assignment]
check_flags_exist(["--num-layers"])
