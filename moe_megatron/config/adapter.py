"""Low-rank adapters of a run as words: which matrices have one, of what rank, how experts share.

An adapted matrix W [out, in] works as W + s B A, with A [r, in] and B [out, r] trained and W frozen
(LoRA, arXiv:2106.09685). It does not know tensors; names of those are here, because whoever reads a
checkpoint must know them.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from moe_megatron.config.checks import clipped, first_few, join_words, nearest
from moe_megatron.config.conform import conform
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.config.selector import Selector, canonical
from moe_megatron.config.within import Within
from moe_megatron.errors import ConfigError

A, B, MAGNITUDE = TENSORS = ("lora_A", "lora_B", "lora_magnitude")
"""The tensors of an adapter, as the last part of their names, where the matrix has `weight`."""

WITH_MATRICES = ("attention", "experts", "shared_experts", "mlp")
"""Roles whose matrices can have adapters."""

NO_MATRICES = ("router", "embeddings", "output", "norms", "other")
"""Roles of which nothing has an adapter."""

ADAPTABLE = ("attention", "experts", "shared_experts")
"""Roles whose matrices have one unless targets are named."""

Sharing = Literal["own", "shared_a", "shared"]
"""How the experts of a layer share adapters: none, A alone, or A and B."""

_SHARED: Mapping[Sharing, tuple[str, ...]] = {"own": (), "shared_a": (A,), "shared": (A, B)}
"""The tensors that all routed experts of a layer have in common; norms are always an expert's own,
because matrices are."""
_LAYER = re.compile(r"(?:decoder|mtp)\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)(?=\.)")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """Which matrices have low-rank adapters, and what those are like.

    Raises:
        ConfigError: A value is out of range, a selector is none, or a field has no effect.
    """

    rank: Annotated[int, Within(least=1)] | None = None
    """Rows of A and columns of B; null: no adapters. What finetune.train names is trained beside
    adapters, and nothing else."""

    alpha: Annotated[float, Within(above=0)] = 16.0
    """What the scale s of adapters is made of, whatever their rank."""

    scaling: Literal["standard", "rank_stabilized"] = "standard"
    """Whether s is alpha / r, or alpha / sqrt(r), with which updates do not shrink with the rank
    (rsLoRA, arXiv:2312.03732)."""

    targets: tuple[str, ...] = ()
    """Selectors of the matrices, such as experts@2-4:0,3; empty: those of attention, of routed and
    of shared experts."""

    ranks: tuple[str, ...] = ()
    """Ranks of their own, as SELECTOR=RANK, such as experts@2:0=16; of several that fit, the last
    one applies."""

    experts: Sharing = "own"
    """What the routed experts of a layer have in common: nothing; A, so that B alone is each
    expert's own; or A and B."""

    magnitude: bool = False
    """Train the norm of each row of the adapted matrix beside its direction (DoRA,
    arXiv:2402.09353)."""

    dropout: Annotated[float, Within(least=0, below=1)] = 0.0
    """Probability of leaving an input of A out, in training only."""

    frozen_experts: Literal["as_is", "nf4"] = "as_is"
    """How matrices of routed experts that are not trained are kept in memory: as they are, or in
    4 bits (NF4; QLoRA, arXiv:2305.14314), which rounds them."""

    def __post_init__(self) -> None:
        conform(self)
        for field in fields(self) if self.rank is None else ():
            if getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"adapter.{field.name} has no effect without adapter.rank; set that, too, to 8 "
                    "for example."
                )
        try:
            object.__setattr__(self, "targets", canonical(self.targets))
        except ConfigError as error:
            raise ConfigError(f"adapter.targets: {error}") from None
        if self.magnitude and self.frozen_experts != "as_is":
            raise ConfigError(
                "adapter.magnitude needs the norms of whole matrices in each pass, which "
                f"adapter.frozen_experts '{self.frozen_experts}' does not keep; leave one of them "
                "out."
            )
        for field_name, selector in self.selectors():
            if selector.what in NO_MATRICES:
                raise ConfigError(
                    f"{field_name} '{selector}' names no matrix that can have an adapter; write "
                    f"{join_words([*ADAPTABLE, 'mlp', 'all'])}, or a pattern of names. To train "
                    f"{selector.what}, name it in finetune.train."
                )
        for selector, rank in self._ranks() if self.experts != "own" else ():
            if selector.experts:
                raise ConfigError(
                    f"adapter.ranks '{selector}={rank}' gives an expert a rank of its own, but "
                    f"with adapter.experts '{self.experts}' all experts of a layer share a matrix "
                    "of that rank; name layers alone, or set adapter.experts to own."
                )

    @property
    def on(self) -> bool:
        """Whether there are adapters."""
        return self.rank is not None

    def scale(self, rank: int) -> float:
        """The factor s of B A."""
        return self.alpha / (math.sqrt(rank) if self.scaling == "rank_stabilized" else rank)

    def rank_of(self, place: ParameterPlace) -> int | None:
        """The rank of a matrix's adapter; None: it has none.

        Args:
            place: Of the matrix's weight, as in the local layer spec.
        """
        if self.rank is None or place.role not in WITH_MATRICES:
            return None
        if not any(it.matches(place) for _, it in self._targets()):
            return None
        own = [rank for selector, rank in self._ranks() if selector.matches(place)]
        return own[-1] if own else self.rank

    def too_large(self, place: ParameterPlace, outputs: int, inputs: int) -> str:
        """What is wrong with the rank of a matrix's adapter; "": nothing.

        Args:
            place: Of the matrix's weight.
            outputs: Its rows.
            inputs: Its columns.
        """
        rank, most = self.rank_of(place), min(outputs, inputs)
        if rank is None or rank <= most:
            return ""
        return (
            f"the rank {rank} of an adapter is larger than {place.name} [{outputs}, {inputs}]; set "
            f"adapter.rank to {most} or less, or give this matrix a rank of its own in "
            "adapter.ranks."
        )

    def without_matrix(
        self, field: str, selector: Selector, places: Iterable[ParameterPlace]
    ) -> str:
        """What to say of a selector that names no matrix.

        Args:
            field: Where it stands.
            selector: The selector.
            places: Of all matrices that can have adapters.
        """
        names = sorted({it.name for it in places})
        hint = nearest(selector.what, names) or f" There are: {matrices_in_words(names)}."
        return f"{field} '{selector}' names no matrix that can have an adapter.{hint}"

    def selectors(self) -> Iterator[tuple[str, Selector]]:
        """All selectors that somebody has written, each with the field that it stands in."""
        if self.targets:
            yield from self._targets()
        for selector, _ in self._ranks():
            yield "adapter.ranks", selector

    def tensor_name(self, place: str, part: str) -> str:
        """The name of a tensor of a matrix's adapter, in checkpoints.

        Args:
            place: Name of the matrix's weight, such as
                `decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight`.
            part: One of `TENSORS`.
        """
        if part in _SHARED[self.experts]:
            place = _EXPERT.sub("", place)
        return f"{place.removesuffix('weight')}{part}"

    def _targets(self) -> Iterator[tuple[str, Selector]]:
        for text in self.targets or ADAPTABLE:
            yield "adapter.targets", Selector.read(text)

    def _ranks(self) -> Iterator[tuple[Selector, int]]:
        for text in self.ranks:
            selector, equals, rank = text.rpartition("=")
            if not equals or not rank.strip().isdecimal() or not int(rank):
                raise ConfigError(
                    f"adapter.ranks '{clipped(text)}' must be SELECTOR=RANK with a rank of at "
                    "least 1, as in experts@2:0=16."
                )
            try:
                yield Selector.read(selector), int(rank)
            except ConfigError as error:
                raise ConfigError(f"adapter.ranks: {error}") from None


def place_of_tensor(name: str, prediction_after: int) -> ParameterPlace:
    """The place of a tensor of an adapter.

    Args:
        name: As in checkpoints.
        prediction_after: Layers of the decoder, after which those for multi-token prediction count.
    """
    layer, expert = _LAYER.match(name), _EXPERT.search(name)
    before = prediction_after if name.startswith("mtp.") else 0
    return ParameterPlace(
        name,
        layer=int(layer[1]) + 1 + before if layer else None,
        expert=int(expert[1]) if expert else None,
    )


def matrices_in_words(names: Iterable[str]) -> str:
    """Names of matrices with stars for numbers, as patterns of names are written."""
    return first_few(sorted({_with_stars(it) for it in names})) or "none"


def _with_stars(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def is_of_adapter(name: str) -> bool:
    """Whether a tensor of a checkpoint or model is one of an adapter, by its name."""
    return name.rpartition(".")[2] in TENSORS
