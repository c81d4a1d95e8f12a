"""`python -m moe_megatron`: the `moe-megatron` command, where it is not on the PATH."""

import sys

from moe_megatron.cli.main import main

# The guard matters: processes that are spawned import this file again.
if __name__ == "__main__":
    sys.exit(main())
