"""Freed memory stays in the process: a second large tensor causes no page faults."""

import os
import platform
import subprocess
import sys

import pytest

from moe_megatron.mcore.cpu.fast import SWITCH

PROGRAM = """
import resource, torch
import moe_megatron.mcore
def touch():
    torch.ones(64 * 2**18).sum()
for _ in range(12):  # an aligned block fits into the one freed before only after a few rounds
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(switched_off: str) -> int:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", SWITCH: switched_off}
    command = [sys.executable, "-c", PROGRAM]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(answer.stdout)


@pytest.mark.deep
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_is_used_again_is_not_asked_for_again() -> None:
    # Ten times 64 MiB, in pages of at most 2 MiB.
    assert page_faults("allocator") > 10 * 32
    assert page_faults("") < 32
