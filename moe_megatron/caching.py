"""The cache of experts that users import: `ExpertCache`, and policies and stores of one's own."""

from moe_megatron.inference.cache.policies import Key, Policy, register_policy
from moe_megatron.inference.cache.prefetch import Prefetch, PrefetchStats
from moe_megatron.inference.expert_cache import CacheStats, ExpertCache
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.inference.store.opening import register_store

__all__ = [
    "CacheStats",
    "ExpertCache",
    "ExpertStore",
    "Key",
    "Policy",
    "Prefetch",
    "PrefetchStats",
    "register_policy",
    "register_store",
]
