"""The random numbers of routers: those of one process, whatever the layout.

Megatron gives all ranks of a stage the same random numbers, so that tokens on different ranks would
get the same noise, and other stages others. Here each micro-batch of the global batch has a number,
and each router draws from what that and its layer give. The number is half of the seed of torch's
generator, as the forward step has left it, whichever of Megatron's states is in use: recomputation
restores the generator, and draws the same again.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_HALF = 32
"""Bits of a seed that are for what else draws; a CPU's generator looks at these alone."""


def hashed(*parts: object, bits: int) -> int:
    """A number of so many bits that depends on all parts."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest) >> (256 - bits)


def seed_of(micro_batch: int, stream: str) -> int:
    """A seed for a state of the generator that tells which micro-batch is computed.

    Args:
        micro_batch: Its number, of 31 bits.
        stream: What draws from it.
    """
    return micro_batch << _HALF | hashed(micro_batch, stream, bits=_HALF)


@contextmanager
def drawn_for(name: str, device: torch.device) -> Iterator[None]:
    """Draw from a seed made of the micro-batch and of a name; what is outside draws on as before.

    Args:
        name: Of what draws, such as a layer's number.
        device: Where it draws.
    """
    seed = hashed(torch.initial_seed() >> _HALF, name, bits=63)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        yield
