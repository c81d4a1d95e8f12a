# shellcheck shell=bash
# shellcheck disable=SC2034
# Everything that depends on the site, in one file: the batch scripts source it, and nothing else of
# them should need a change. Copy it, or edit it here. Lines that are commented out are examples.

# --- accounting: sbatch reads these if you `source examples/slurm/_env.sh` before it; `moe-megatron
# slurm submit` does so by itself ------------------------------------------------------------------
# export SBATCH_ACCOUNT=my_project
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal

# --- software: a virtual environment, or modules, or a container ----------------------------------
# module purge && module load cuda/13.0
# The environment of this checkout, made by `make setup`. In a container leave it out.
export PATH=$PWD/.venv/bin:$PATH

# none, pyxis (srun --container-image, over enroot), or apptainer (formerly singularity).
export MOE_CONTAINER=${MOE_CONTAINER:-none}
# pyxis: a squashfs file, made once by
#   enroot import -o moe.sqsh docker://registry.example.org#open-moe-trainer-lab:gpu
# apptainer: a sif file, made once by `apptainer build moe.sif docker-daemon://open-moe-trainer-lab:gpu`.
export MOE_IMAGE=${MOE_IMAGE:-}
# Folders that are visible inside, beside the working directory: FROM:TO, with commas.
export MOE_MOUNTS=${MOE_MOUNTS:-}

# --- caches: every node reads them, so they lie on a shared file system and not in a home ---------
# export MOE_MEGATRON_CACHE=/scratch/$USER/moe_megatron   # prepared data
# export HF_HOME=/scratch/$USER/huggingface               # tokenizers and models of the Hub
# export TRITON_CACHE_DIR=/tmp/triton-$USER               # local: compiled anew on each node
# Nodes without internet: download first, on a login node, then
# export HF_HUB_OFFLINE=1

# --- network ---------------------------------------------------------------------------------------
# The interface over which ranks find each other (TCP). On nodes with several, the wrong one hangs:
# `ip -brief address` shows them. It is not the one that carries the tensors.
# export NCCL_SOCKET_IFNAME=eth0
# export GLOO_SOCKET_IFNAME=eth0   # of runs on CPUs, and of small groups on GPUs

# InfiniBand or RoCE carry the tensors. NCCL finds the adapters; name them where some serve storage.
# export NCCL_IB_HCA=mlx5_0,mlx5_1,mlx5_2,mlx5_3
# Retries double the timeout from 4.096 us * 2^22 = 17 s: a switch that reboots ends no run.
# export NCCL_IB_TIMEOUT=22 NCCL_IB_RETRY_CNT=13
# RoCE alone: the index of the RoCEv2 address, as `show_gids` prints it.
# export NCCL_IB_GID_INDEX=3
# Which transport was chosen: look for "NET/IB" (good) or "NET/Socket" (slow) in a node's log.
# export NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=INIT,NET
# Ranks that wait for a dead one end after ten minutes, in place of spinning until the time limit.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# What each rank did last is kept, to find the one that hangs.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}

# --- health check before each attempt (moe-megatron slurm check-node --help) ----------------------
MOE_CHECK_OPTIONS=(--free-gib 1 --memory-gib 1)
# MOE_CHECK_OPTIONS+=(--disk /scratch --free-gib 500 --memory-gib 200)
# MOE_CHECK_OPTIONS+=(--dcgm-level 1)                     # seconds; 2 measures bandwidths, minutes
# MOE_CHECK_OPTIONS+=(--site-check /opt/site/bin/node_ok) # exits with 0 on a node that is well
export MOE_CHECK_SECONDS=${MOE_CHECK_SECONDS:-300}        # a node that has not answered is not well

# --- metrics: a target file for Prometheus, in the folder that it watches -------------------------
# Ranks listen on the loopback address unless told otherwise. What listens to the network should ask
# for a token (docs/metrics.md); the file holds it, the command line does not.
# MOE_TRAIN_OPTIONS=(--metrics-port 0 --metrics-host 0.0.0.0 --metrics-token-file "$HOME/.moe_token"
#     --set telemetry.metrics_discovery_dir=/shared/prometheus/targets)
MOE_TRAIN_OPTIONS=()
