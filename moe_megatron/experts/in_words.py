"""Routers and kinds of experts in a few words, for people: what is as usual is left out.

Whoever reads what was trained with a file of somebody's does not need that file: of such code, and
of what is registered nowhere, all noted options are said.
"""

from dataclasses import fields
from typing import Any

from moe_megatron import routing
from moe_megatron.config import ExpertConfig, RouterConfig
from moe_megatron.errors import ConfigError
from moe_megatron.experts.kinds import find_expert


def described(choice: RouterConfig | ExpertConfig) -> str:
    """A router or a kind of expert, such as "top_k (score_function sigmoid)"."""
    try:
        kind = (
            routing.find_router(choice) if isinstance(choice, RouterConfig) else find_expert(choice)
        )
    except ConfigError:
        return choice.described({})
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind.options)}
    return choice.described(defaults)
