"""`OptimizedMoEModel`: a Hugging Face model whose experts are read when they are needed.

    model = OptimizedMoEModel.from_pretrained("my_model")
    model.set_expert_cache(ExpertCache(capacity_gb=4.0, policy="weighted_lru"))
    model.generate(input_ids, max_new_tokens=32)
    print(model.get_expert_cache().get_stats().hit_rate)

Everything else of the model is transformers': its classes, its loader, its generation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.config.arguments import explained, whole
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.inference.cache.policies import Counts
from moe_megatron.inference.cache.trace import Traced
from moe_megatron.inference.expert_cache import ExpertCache
from moe_megatron.inference.exported import model_folder
from moe_megatron.inference.kept_experts import ALL, Kept, Routed, Strategy, kept_experts
from moe_megatron.inference.kept_routers import keep_rows
from moe_megatron.inference.next_router import Foresee, next_routers
from moe_megatron.inference.quantization.packed_config import KEY
from moe_megatron.inference.recorder import Recorder, watching
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.inference.store.kept import KeptStore
from moe_megatron.inference.store.opening import open_store
from moe_megatron.inference.store.packed import PackedStore
from moe_megatron.inference.transfer import check_device
from moe_megatron.inference.transformers_experts import NAME, Place, without_weights
from moe_megatron.inference.usage import counts_of
from moe_megatron.telemetry.values.profile import RoutingProfile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_megatron.model import MoEModel


@explained
class OptimizedMoEModel:
    """A causal language model with a cache of experts; made by `from_pretrained`."""

    def __init__(
        self,
        model: "PreTrainedModel",
        store: ExpertStore,
        places: Sequence[Place],
        counts: Counts,
        kept: Kept | None = None,
    ) -> None:
        self.model = model
        self.store = store
        self.kept = kept
        """Numbers of the experts that were loaded, by layer, from 0; None: all."""
        self._places = tuple(places)
        self._counts = counts
        self._cache: ExpertCache | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        expert_selection_strategy: Strategy = ALL,
        num_experts_to_load: int | None = None,
        device_map: str | None = None,
        *,
        profile: RoutingProfile | str | Path | None = None,
        experts: str | Path | None = None,
    ) -> Self:
        """Load all of a model but its experts, or but some of them for good.

        Args:
            source: A Hugging Face folder, a hub id, or a Megatron checkpoint, which is exported
                into the cache once.
            expert_selection_strategy: "all"; "frequency_based", the experts of each layer that are
                used most; "by_layer", as many in the mean over layers, more where more are used; or
                a function from the counts of the profile [L, E] to the experts of each layer. A
                model that is not whole computes something else.
            num_experts_to_load: Experts of each layer.
            device_map: "cpu", or "cuda" with slots of the cache in its memory, for experts that are
                not packed; None is "cpu".
            profile: What a training learned of the experts' use, or its file; a strategy takes
                `routing_profile.json` of the folder where there is none.
            experts: Where they are read, if not in `source`, which may be without: what
                `moe-megatron cache pack` has filled, a folder, s3://BUCKET/PREFIX or
                gs://BUCKET/PREFIX, or an address of a store under `@register_store`.

        Raises:
            CheckpointError: It is incomplete, or its experts cannot be read one by one, or are
                those of another model.
            ConfigError: The address, the strategy or the number does not fit the model.
            DataError: The profile cannot be read, or is of another model.
            MappingError: There is no table for its family.
        """
        device = check_device(device_map)
        path = model_folder(source)
        kept = None
        if expert_selection_strategy != ALL or num_experts_to_load is not None:
            kept = kept_experts(
                expert_selection_strategy, num_experts_to_load, Routed.of(path), profile
            )
        store = open_store(path, experts)
        if device.type != "cpu" and isinstance(store, PackedStore):
            raise ConfigError(
                f"{path} has packed experts, which torch multiplies on a processor alone; leave "
                f"device_map ({device_map!r}) out, or load the model as it was before."
            )
        model, places = _without_experts(path, device)
        if {it.layer for it in places} != set(store.layers):
            raise CheckpointError(
                f"{path} has experts in layers {_numbers(store.layers)}, and "
                f"{type(model).__name__} in {_numbers(it.layer for it in places)}; "
                "its config.json is of another model."
            )
        counts = counts_of(profile, store)
        if kept is None:
            return cls(model, store, places, counts)
        keep_rows(model, kept)
        some = KeptStore(store, kept)
        return cls(model, some, places, some.renumbered(counts), kept)

    @classmethod
    def from_model(cls, model: "MoEModel", folder: str | Path, **more: Any) -> Self:
        """Save a model of ours as a Hugging Face folder, and load that.

        Args:
            model: The model.
            folder: A new folder, from which experts are read from then on.
            more: Arguments of `from_pretrained`.

        Raises:
            CheckpointError: The folder cannot be written.
            MappingError: No Hugging Face family can represent the model.
        """
        model.save_pretrained(folder, format="hugging_face")
        return cls.from_pretrained(folder, **more)

    def set_expert_cache(self, cache: ExpertCache) -> None:
        """Keep experts in this cache, in place of the one before.

        Raises:
            ConfigError: It is too small; the message has the smallest size.
            CheckpointError: An expert cannot be read.
        """
        if not isinstance(cache, ExpertCache):
            raise ConfigError(
                f"cache ({cache!r:.60}) must be an ExpertCache, such as "
                "ExpertCache(capacity_gb=4.0)."
            )
        routers = {} if cache.prefetch is None else next_routers(self.model)
        cache.open(
            self.store,
            layers=self.store.layers,
            top_k=self.store.top_k,
            counts=self._counts,
            device=self.model.device,
        )
        if self._cache is not None and self._cache is not cache:
            self._cache.close()
        self._cache = cache
        for place in self._places:
            place.source = cache.matrices
            place.ahead = None
            if place.layer in routers:
                place.ahead = partial(_read_ahead, cache, *routers[place.layer])

    def enable_dynamic_loading(self, cache_size: int, eviction_policy: str = "lru") -> None:
        """Keep so many experts of each layer, in the mean over layers.

        Args:
            cache_size: Experts of a layer.
            eviction_policy: As of `ExpertCache`.

        Raises:
            ConfigError: They are fewer than a token needs, or there is no such policy.
        """
        slots = whole("cache_size", cache_size) * len(self.store.layers)
        gigabytes = (slots + 0.5) * self.store.nbytes / 1e9
        self.set_expert_cache(ExpertCache(gigabytes, policy=eviction_policy))

    def get_expert_cache(self) -> ExpertCache:
        """The cache; without one, a cache for all experts is made."""
        if self._cache is None:
            whole_model = (len(self.store.keys) + 0.5) * self.store.nbytes / 1e9
            self.set_expert_cache(ExpertCache(whole_model))
        assert self._cache is not None
        return self._cache

    @torch.inference_mode()
    def __call__(self, input_ids: Tensor, **more: Any) -> Any:
        """What transformers' forward gives, without gradients."""
        self.get_expert_cache()
        return self.model(input_ids=input_ids.to(self.model.device), **more)

    @torch.inference_mode()
    def generate(self, input_ids: Tensor, max_new_tokens: int = 20, **more: Any) -> Tensor:
        """Go on with token ids [B, T]; further arguments are those of transformers' `generate`."""
        self.get_expert_cache()
        most = whole("max_new_tokens", max_new_tokens)
        ids = input_ids.to(self.model.device)
        words: Tensor = self.model.generate(ids, max_new_tokens=most, **more)
        return words

    @contextmanager
    def record(self) -> Iterator[Recorder]:
        """Note which experts the `with` block needs; `trace()` of what it gives has them."""
        store = self.store
        about = Traced(
            layers=len(store.layers),
            experts=store.experts,
            top_k=store.top_k,
            expert_bytes=store.nbytes,
            model=store.path.name,
            routers=routers_of(store.path) if self.kept is None else {},
        )
        with watching(self._places, Recorder(about, store.layers[0])) as recorder:
            yield recorder

    def close(self) -> None:
        """Give memory and files back."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        self.store.close()


def _without_experts(path: Path, device: torch.device) -> tuple["PreTrainedModel", list[Place]]:
    """The model as transformers loads it, with experts that have no parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    if hasattr(config, KEY):  # experts are all that it speaks of, and transformers loads none
        delattr(config, KEY)
    with torch.device("meta"):
        known = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    places: list[Place] = []

    def build(self: Any, *given: Any, **more: Any) -> None:
        known.__init__(self, *given, **more)
        places[:] = without_weights(self)
        ignored = set(self._keys_to_ignore_on_load_unexpected or ())
        self._keys_to_ignore_on_load_unexpected = ignored | {r"\.experts\."}

    # Transformers finds its tables by the name of the class.
    bare: Any = type(known.__name__, (known,), {"__init__": build, "__module__": known.__module__})
    model = bare.from_pretrained(path, config=config, dtype="auto", local_files_only=True).eval()
    model.set_experts_implementation(NAME)
    for parameter in model.parameters():  # not of a map: a file that is cut short would kill us
        parameter.data = parameter.data.to(device, copy=True)
    return model.to(device), places


def _read_ahead(cache: ExpertCache, layer: int, foresee: Foresee, hidden: Tensor) -> None:
    cache.read_ahead(layer, lambda: foresee(hidden))


def _numbers(layers: Any) -> str:
    return ", ".join(str(it + 1) for it in sorted(layers)) or "none"
