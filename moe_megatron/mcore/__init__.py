"""The one package that knows Megatron-Core.

Importing it makes Megatron importable on this machine. With a CUDA device nothing is changed;
without one, `moe_megatron.mcore.cpu.emulation` is installed first.
"""

import logging
import os
import warnings

import torch

from moe_megatron.mcore.cpu import emulation
from moe_megatron.mcore.later import import_later

# Megatron warns in every module about missing optional packages; `moe-megatron doctor` says which
# of them matter here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
warnings.filterwarnings("ignore", category=SyntaxWarning, message="invalid escape sequence")
warnings.filterwarnings("ignore", category=UserWarning, message="'pin_memory' argument is set")

if os.environ.get("MOE_MEGATRON_DEVICE", "").strip().lower() == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch must see the same devices as the run

import_later("wandb")
if not torch.cuda.is_available():
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    emulation.install()
