"""`torchrun -m moe_megatron.pretrain`: the script `pretrain_moe.py`, for an installed wheel."""

import sys

from moe_megatron.cli.pretrain import main

# The guard matters: asynchronous checkpoint writers import this file again.
if __name__ == "__main__":
    sys.exit(main())
