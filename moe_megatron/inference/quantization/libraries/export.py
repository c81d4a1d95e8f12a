"""What a library wrote, compared with what it was given: experts quantized, and nothing else.

Libraries leave fused experts in bf16 without a word, quantize routers, or write packed weights that
no configuration mentions; each of these loads somewhere, and computes something else. So every
matrix of every expert is looked for in the headers, and every other tensor is compared with the
source byte by byte.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.byte_ranges import BUFFER_BYTES
from moe_megatron.checkpoint.formats.hf_folder import CONFIG, HfFolder, TensorInfo
from moe_megatron.config.checks import first_few, join_words
from moe_megatron.errors import CheckpointError
from moe_megatron.families import Family, Geometry, family_of
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization import names
from moe_megatron.inference.quantization.audit import Audit
from moe_megatron.inference.quantization.libraries.layouts import Layout
from moe_megatron.inference.quantization.names import Projection
from moe_megatron.inference.quantization.packed_config import KEY

Role = tuple[int, int, str]
"""Layer, expert, and which matrix of it."""
_EXPERT = re.compile(r"\.layers\.(\d+)\.(?:\w+\.)*experts\.(\d+)\.(\w+)$")
_FUSED = re.compile(r"\.experts\.(?:gate_up_proj|gate_proj|up_proj|down_proj)(?:\.|_|$)")
_ROLES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""Mixtral's names of what the others call so; libraries write either."""
_BLOCK = re.compile(r"\.block_sparse_moe\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A folder that passed."""

    folder: HfFolder
    family: Family
    geometry: Geometry
    modules: dict[Role, str]
    """How the library calls the matrices of experts."""
    projections: dict[Key, tuple[Projection, ...]]
    audit: Audit


def role_of(module: str) -> Role | None:
    """Which matrix of which expert a module is; None: it is none."""
    found = _EXPERT.search(f".{module}")
    if found is None:
        return None
    return int(found[1]), int(found[2]), _ROLES.get(found[3], found[3])


def audit_export(
    path: Path, source: Path, layout: Layout, *, library: str, bits: int, group_size: int
) -> Export:
    """Check the folder that a library wrote.

    Args:
        path: That folder.
        source: The folder that it was made from.
        layout: How quantized matrices must look in it.
        library: Its name, for messages.
        bits: Of a weight.
        group_size: Weights of a row that share a scale.

    Raises:
        CheckpointError: An expert was not quantized as it must be, a router or another tensor is
            not as it was, or `config.json` does not speak of it; the message names the tensors.
        MappingError: The family of the source is unknown.
    """
    given, made = HfFolder(source), HfFolder(path, quantized=True)
    family = family_of(given.config)
    geometry = family.geometry(given.config, given.tensors)
    projections = names.projections(family, geometry)
    check = _Check(given, made, library)
    check.told(layout)
    modules = check.experts(projections, layout, bits, group_size)
    routers = check.others(set(names.routers(family, geometry)))
    return Export(
        folder=made,
        family=family,
        geometry=geometry,
        modules=modules,
        projections=projections,
        audit=Audit(check.kinds(modules, layout), dict(routers)),
    )


@dataclass(frozen=True, slots=True)
class _Check:
    """Two folders: what a library was given, and what it made."""

    given: HfFolder
    made: HfFolder
    library: str

    def told(self, layout: Layout) -> None:
        """The configuration names the format, or no reader will see that there is one."""
        told = self.made.config.get(KEY)
        method = told.get("quant_method") if isinstance(told, dict) else None
        if method not in layout.methods:
            raise self.wrong(
                f"wrote a {CONFIG} whose {KEY} has the quant_method {method!r}, where "
                f"{join_words(sorted(layout.methods))} is needed: readers would take packed "
                "weights for plain ones"
            )

    def experts(
        self, wanted: dict[Key, tuple[Projection, ...]], layout: Layout, bits: int, group: int
    ) -> dict[Role, str]:
        """The library's modules of all matrices of experts."""
        known = {role_of(it.rpartition(".")[0]): it.rpartition(".")[0] for it in self.made.tensors}
        found: dict[Role, str] = {}
        plain: list[str] = []
        odd: list[str] = []
        for places in wanted.values():
            for place in places:
                role = role_of(place.module)
                assert role is not None, place.module
                module = known.get(role)
                if module is None or self._is_plain(module):
                    plain.append(place.module if module is None else f"{module}.weight")
                    continue
                found[role] = module
                odd += self._odd(module, place, layout, bits, group)
        if plain:
            fused = [it for it in self.made.tensors if _FUSED.search(it)]
            raise self.wrong(
                f"left {len(plain):,} of {sum(map(len, wanted.values())):,} matrices of experts as "
                f"they were, and said nothing: {first_few(fused or plain, 3)}"
            )
        if odd:
            raise self.wrong(
                f"wrote experts in another way than it was asked to: {first_few(odd, 3)}"
            )
        return found

    def _is_plain(self, module: str) -> bool:
        weight = self.made.tensors.get(f"{module}.weight")
        return weight is not None and weight.dtype in dtypes.FLOATS

    def _odd(
        self, module: str, place: Projection, layout: Layout, bits: int, group: int
    ) -> Iterator[str]:
        for end, part in layout.parts.items():
            tensor = self.made.tensors.get(module + end)
            if tensor is None:
                if part.needed:
                    yield f"{module}{end} is missing"
                continue
            shape = part.shape(place.rows, place.columns, bits, group)
            if tensor.dtype not in part.types or shape not in (None, tensor.shape):
                yield (
                    f"{module}{end} is {tensor.dtype} {list(tensor.shape)}, not "
                    f"{join_words(sorted(part.types))} {'' if shape is None else list(shape)}"
                ).rstrip()

    def others(self, routers: set[str]) -> Counter[str]:
        """Every other tensor is that of the source; returns the types of routers."""
        plain = {_plain(name): it for name, it in self.made.tensors.items()}
        kinds: Counter[str] = Counter()
        changed, missing = [], []
        for name, tensor in self.given.tensors.items():
            if _FUSED.search(name) or role_of(name.rpartition(".")[0]) is not None:
                continue
            there = plain.get(_plain(name))
            if there is None:
                missing.append(name)
            elif not self._equal(tensor, there):
                changed.append(f"{name} ({tensor.dtype}, now {there.dtype})")
            if name in routers:
                kinds[tensor.dtype] += 1
        for what, them in (("left out", missing), ("changed", changed)):
            if them:
                of_routers = [it for it in them if it.partition(" ")[0] in routers]
                raise self.wrong(
                    f"{what} {len(of_routers):,} routers and {len(them) - len(of_routers):,} other "
                    f"tensors that are no experts: {first_few(of_routers or them, 3)}"
                )
        return kinds

    def _equal(self, one: TensorInfo, other: TensorInfo) -> bool:
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        with (
            (self.given.path / one.file).open("rb") as here,
            (self.made.path / other.file).open("rb") as there,
        ):
            here.seek(one.offset)
            there.seek(other.offset)
            left = one.nbytes
            while left:
                some = min(left, BUFFER_BYTES)
                if here.read(some) != there.read(some):
                    return False
                left -= some
        return True

    def kinds(self, modules: dict[Role, str], layout: Layout) -> dict[str, int]:
        """How many experts have which type."""
        first = next(iter(layout.parts))
        by_expert = {
            role[:2]: self.made.tensors[module + first].dtype for role, module in modules.items()
        }
        return dict(Counter(by_expert.values()))

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.library} {what}. Its folder is not kept; the model is as it was."
        )


def _plain(name: str) -> str:
    """A name in the way in which most families, and libraries, have it."""
    return _BLOCK.sub(".mlp.", name)
