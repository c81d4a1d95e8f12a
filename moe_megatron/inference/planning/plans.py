"""Ways to have a model in a given memory, and how fast each would decode; arithmetic alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moe_megatron.inference.cache.residency import least_slots
from moe_megatron.inference.planning.sizes import Sizes
from moe_megatron.inference.planning.speeds import Speeds
from moe_megatron.inference.quantization.precision import Precision

HitRate = Callable[[int], float]
"""From a number of experts in memory to the share of requests that find theirs there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Experts in some precision."""

    name: str
    precision: Precision | None
    """None: as the model has them."""
    nbytes: int
    """Of one, in memory."""
    file: int
    """Of one, in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to have a model in memory."""

    experts: str
    """Their precision."""
    slots: int
    """Experts that are in memory; 0: the plan does not fit."""
    share: float
    """Of all experts."""
    nbytes: int
    """Of memory, with all of it; of a plan that does not fit, the least that would."""
    hit_rate: float
    tokens_per_second: float
    """Where what is missing is read from the disk."""
    tokens_per_second_pages: float
    """Where the system has the files in memory, besides."""

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.slots > 0


def plans(
    memory: int,
    program: int,
    context: int,
    sizes: Sizes,
    speeds: Speeds,
    kinds: Sequence[Experts],
    hit_rate: HitRate,
) -> list[Plan]:
    """A plan for each precision of experts, with as many of them in memory as fit.

    A step takes, in seconds,

        step + layers * layer + always / memory
        + needed * expert + needed * (1 - hits) * file / read

    where `needed` is the number of experts of a token, and `read` the bytes a second of the disk or
    of the system's memory. Reading is not taken to overlap with computing.

    Args:
        memory: Bytes there are.
        program: Bytes of the program without a model.
        context: Tokens whose keys and values are kept.
        sizes: Of the model.
        speeds: Of the machine.
        kinds: Precisions.
        hit_rate: For each number of experts in memory.
    """
    base = sizes.besides(program, context)
    least = least_slots(sizes.moe_layers, sizes.top_k)
    found = []
    for kind in kinds:
        slots = min((memory - base) // kind.nbytes, sizes.every)
        fits = slots >= least
        hits = (1.0 if slots == sizes.every else hit_rate(slots)) if fits else float("nan")
        rates = [
            1 / _seconds(sizes, speeds, kind, hits, read) if fits else float("nan")
            for read in (speeds.disk, speeds.pages)
        ]
        found.append(
            Plan(
                experts=kind.name,
                slots=slots if fits else 0,
                share=slots / sizes.every if fits else 0.0,
                nbytes=base + (slots if fits else least) * kind.nbytes,
                hit_rate=hits,
                tokens_per_second=rates[0],
                tokens_per_second_pages=rates[1],
            )
        )
    return found


def _seconds(sizes: Sizes, speeds: Speeds, kind: Experts, hits: float, read: float) -> float:
    """Of a decoding step."""
    return (
        speeds.step
        + sizes.layers * speeds.layer
        + sizes.read_always / speeds.memory
        + sizes.needed * speeds.expert[kind.precision]
        + sizes.needed * (1 - hits) * kind.file / read
    )
