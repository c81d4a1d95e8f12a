"""Train a Mixture-of-Experts model with Megatron-Core, as one process of many:

    torchrun --nproc-per-node 2 pretrain_moe.py --config demo_moe
    torchrun --nproc-per-node 8 pretrain_moe.py --config mixtral_8x7b --data-path my_corpus

`--config` names a YAML file or a packaged preset; any Megatron flag may follow and overrides it;
`--print-config` shows the result. The path from here to `megatron.training.pretrain`:

    moe_megatron.cli.pretrain         reads the command line
    moe_megatron.run.start            chooses machine settings, prepares data, opens the sinks
    moe_megatron.mcore.loop.engine    builds Megatron's arguments and model, calls its `pretrain`

`moe-megatron train` prepares the data, chooses the number of processes and starts this script.
"""

import sys

from moe_megatron.cli.pretrain import main

# The guard matters: asynchronous checkpoint writers import this file again.
if __name__ == "__main__":
    sys.exit(main())
