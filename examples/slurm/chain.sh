#!/usr/bin/env bash
# Submits a script several times as a chain: jobs of one name, of which one runs at a time. Where a
# cluster does not start jobs again, the next one goes on where the last one stopped. When the run is
# done the rest of the chain ends at once; when it makes no progress the rest is cancelled.
#   examples/slurm/chain.sh 5 examples/slurm/pretrain_demo_moe.sbatch [OPTIONS OF TRAIN]
set -euo pipefail

count=${1:?give the number of jobs}
script=${2:?give a batch script}
shift 2
for _ in $(seq "$count"); do
    sbatch --dependency=singleton "$script" "$@"
done
