# Two images from one file:
#
#   docker build --target cpu -t open-moe-trainer-lab:cpu .
#   docker build --target gpu -t open-moe-trainer-lab:gpu .
#   docker run --rm -v "$PWD:/workspace" open-moe-trainer-lab:cpu train --config demo_moe
#   docker run --rm --gpus all --ipc host -v "$PWD:/workspace" open-moe-trainer-lab:gpu doctor
#
# Both install the hash-checked packages of requirements/base.txt and run as an ordinary user. Runs,
# prepared data and caches go to /workspace; nothing secret is needed or kept at build time.

# NVIDIA's image brings torch, NCCL and Transformer Engine built for each other; its torch must be
# at least the one in pyproject.toml, which set-up checks.
ARG NVIDIA_IMAGE=nvcr.io/nvidia/pytorch:26.05-py3
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# --- cpu ---------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/moe
COPY . .
RUN UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 tools/setup.sh base
RUN useradd --create-home moe && install -d -o moe /workspace
ENV PATH=/opt/moe/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MOE_MEGATRON_CACHE=/workspace/.cache/moe_megatron \
    MOE_MEGATRON_DEVICE=cpu
USER moe
WORKDIR /workspace
HEALTHCHECK --interval=5m --timeout=60s CMD ["moe-megatron", "doctor"]
ENTRYPOINT ["moe-megatron"]
CMD ["doctor"]

# --- gpu ---------------------------------------------------------------------------------------
FROM ${NVIDIA_IMAGE} AS gpu
WORKDIR /opt/moe
COPY . .
RUN UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 MOE_PYTHON=/usr/bin/python3 tools/setup.sh base
RUN useradd --create-home moe && install -d -o moe /workspace
ENV PATH=/opt/moe/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MOE_MEGATRON_CACHE=/workspace/.cache/moe_megatron
USER moe
WORKDIR /workspace
HEALTHCHECK --interval=5m --timeout=60s CMD ["moe-megatron", "doctor"]
ENTRYPOINT ["moe-megatron"]
CMD ["doctor"]
