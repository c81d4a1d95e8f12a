"""What fewer experts cost: perplexity beside bytes, by how the experts were chosen.

A choice by use is worth something if it beats choices by chance, which are therefore in every
table; and so are the others merged into the most used (M-SMoE, arXiv:2310.01334), written by the
converter into a folder for the time being.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.edit.fewer_experts import MergeLeastUsed
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.errors import CheckpointError, DataError
from moe_megatron.inference.kept_experts import (
    BY_LAYER,
    FREQUENCY,
    Counts,
    Kept,
    Routed,
    Strategy,
    check_number,
    kept_experts,
    share_kept,
)
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.perplexity import perplexity_of
from moe_megatron.inference.quantization.packed_config import KEY
from moe_megatron.inference.recording import recorded
from moe_megatron.inference.usage import profile_of
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.text.loading import load_tokenizer

WHOLE, MERGED, RANDOM = "all", "merged", "random"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A model with fewer experts."""

    choice: str
    """How they were chosen: a strategy, "merged", or "random 1" and so on."""
    experts: float
    """Of a layer, in the mean."""
    nbytes: int
    """Of all its experts."""
    bytes_saved: int
    use: float
    """The part of all uses in the profile that falls on them; of merged ones, on those kept."""
    perplexity: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The table, and what it was made from."""

    model: str
    tokens: int
    """Tokens of the text that perplexity is of."""
    counted: str
    """Where the use of experts was counted, in words."""
    outcomes: tuple[Outcome, ...]
    """The whole model first."""


def judged(
    source: str | Path,
    text: str,
    numbers: Sequence[int],
    *,
    profile: RoutingProfile | Path | None = None,
    tokens: int = 2048,
    window: int = 256,
    seeds: int = 3,
) -> Judged:
    """Judge choices of experts by one text.

    Args:
        source: A Hugging Face folder with a tokenizer, or a hub id.
        text: What perplexity is of.
        numbers: How many experts of each layer are kept.
        profile: Their use; None: `routing_profile.json` of the folder, or without one the first
            half of the text, of which perplexity is then that of the second half.
        tokens: How many tokens of the text are read, at most.
        window: Tokens that know of each other.
        seeds: How many random choices.

    Raises:
        CheckpointError: The model or the profile cannot be read, or they do not fit, or the model
            is quantized.
        ConfigError: A number does not fit the model.
        DataError: There is no tokenizer, or the text is too short.
        MappingError: The family is unknown.
    """
    path = local_folder(source)
    if KEY in HfFolder(path, quantized=True).config:
        raise CheckpointError(
            f"{path} is quantized, and its experts cannot be merged, with which the others are "
            "compared; give the folder from before, whose experts are used as these are."
        )
    routed = Routed.of(path)
    for number in numbers:
        check_number(number, routed)
    known = load_tokenizer(str(path))
    ids, counted = known.encode(text)[:tokens], "the routing profile"
    if profile is None and (path / PROFILE_FILE).is_file():
        profile = path / PROFILE_FILE
    if profile is None:
        half = len(ids) // 2
        if half < 2:
            raise DataError(f"the text has {len(ids)} tokens, and its halves need 2 or more each.")
        trace = recorded(path, known.decode(ids[:half]), tokens=half, window=window)
        profile = profile_of(trace, routed.layers)
        ids, counted = ids[half:], f"the {half:,} tokens before"
    if not isinstance(profile, RoutingProfile):
        profile = RoutingProfile.load(profile)
    for number in numbers:  # before the whole model is judged
        kept_experts(FREQUENCY, number, routed, profile)
    judge = _Judge(path, ids, window, profile, routed)
    found = [judge.whole()]
    for number in numbers:
        found += judge.fewer(number, found[0].nbytes, seeds)
    return Judged(model=path.name, tokens=len(ids), counted=counted, outcomes=tuple(found))


@dataclass(frozen=True, slots=True)
class _Judge:
    """One model, one text, one profile."""

    path: Path
    ids: Sequence[int]
    window: int
    profile: RoutingProfile
    routed: Routed

    def whole(self) -> Outcome:
        model = OptimizedMoEModel.from_pretrained(self.path)
        return self._outcome(WHOLE, model, None, 1.0)

    def fewer(self, number: int, everything: int, seeds: int) -> Iterator[Outcome]:
        """All choices of so many experts."""
        for name in (FREQUENCY, BY_LAYER):
            yield self._chosen(name, name, number, everything)
        yield self._merged(number, everything)
        for seed in range(1, seeds + 1):

            def chance(counts: Counts, seed: int = seed) -> list[list[int]]:
                return _random(counts, number, self.routed, seed)

            yield self._chosen(f"{RANDOM} {seed}", chance, None, everything)

    def _chosen(
        self, name: str, strategy: Strategy, number: int | None, everything: int
    ) -> Outcome:
        model = OptimizedMoEModel.from_pretrained(self.path, strategy, number, profile=self.profile)
        assert model.kept is not None
        return self._outcome(name, model, everything, self._share(model.kept))

    def _merged(self, number: int, everything: int) -> Outcome:
        kept = kept_experts(FREQUENCY, number, self.routed, self.profile)
        assert kept is not None
        quiet = Execution(progress=False)
        merging = MergeLeastUsed(num_experts=number, profile=self.profile)
        with TemporaryDirectory(prefix="moe-megatron-") as scratch:
            megatron, folder = Path(scratch) / "megatron", Path(scratch) / "merged"
            import_checkpoint(self.path, megatron, experts=merging, execution=quiet)
            export_checkpoint(megatron, folder, execution=quiet)
            model = OptimizedMoEModel.from_pretrained(folder)
            return self._outcome(MERGED, model, everything, self._share(kept))

    def _share(self, kept: Kept) -> float:
        return share_kept(self.profile.tokens_per_expert[: len(self.routed.layers)], kept)

    def _outcome(
        self, name: str, model: OptimizedMoEModel, everything: int | None, use: float
    ) -> Outcome:
        store = model.store
        nbytes = len(store.keys) * store.nbytes
        try:
            return Outcome(
                choice=name,
                experts=len(store.keys) / len(store.layers),
                nbytes=nbytes,
                bytes_saved=0 if everything is None else everything - nbytes,
                use=use,
                perplexity=perplexity_of(model, self.ids, window=self.window),
            )
        finally:
            model.close()


def _random(counts: Counts, number: int, routed: Routed, seed: int) -> list[list[int]]:
    """So many experts of each layer, as many of each group."""
    size = routed.experts // routed.groups
    draw = np.random.default_rng(seed)
    return [
        [
            group * size + int(it)
            for group in range(routed.groups)
            for it in draw.permutation(size)[: number // routed.groups]
        ]
        for _ in range(len(counts))
    ]
