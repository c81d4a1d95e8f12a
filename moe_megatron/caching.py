"""The cache of experts that users import: `ExpertCache`, and policies of one's own."""

from moe_megatron.inference.cache.policies import Key, Policy, register_policy
from moe_megatron.inference.expert_cache import CacheStats, ExpertCache

__all__ = ["CacheStats", "ExpertCache", "Key", "Policy", "register_policy"]
