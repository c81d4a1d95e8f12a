"""A case of a bench: a router with its options, and a number of experts.

It is given by the name of a router, or by `path/to/file.py:function` of the user's own, and is
tried on a few tokens before anything is trained.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from moe_megatron.benchmarks.setup import Setup
from moe_megatron.config.named import Option
from moe_megatron.errors import ConfigError, MoEError
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.routing import find_router, own_router, router_names
from moe_megatron.routing.task_conditioned import NAME as TASK_CONDITIONED

REFERENCE = "top_k"
"""The router that the others are compared with."""
EQUAL_WORK: Mapping[str, Mapping[str, Option]] = {"top_p": {"threshold": 0.3}}
"""Options without which a router would use more experts a token than it should."""
_TRIAL_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What one row of a table is about."""

    router: str
    """A registered name, or the user's own file and function."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Options of the router that differ from its defaults."""
    num_experts: int = 8

    @property
    def name(self) -> str:
        """The router: its name, or "my_router.py:sharp" without folders."""
        return own_router(self.router).name

    @property
    def label(self) -> str:
        """The router with its options, as tables show it."""
        given = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name} ({given})" if given else self.name

    @property
    def slug(self) -> str:
        """Begins the names of its files."""
        return f"{re.sub(r'[^A-Za-z0-9_]', '-', self.name)}-e{self.num_experts}"

    def to_plain(self) -> dict[str, Any]:
        """What a result is a result of, as JSON values; of the user's own code, the hash too."""
        plain = {"router": self.name, "options": dict(self.options), "experts": self.num_experts}
        if (sha256 := own_router(self.router).sha256) is not None:
            plain["sha256"] = sha256
        return plain


def cases_of(
    routers: Sequence[str], options: Mapping[str, Mapping[str, Option]], experts: Sequence[int]
) -> list[Case]:
    """Every router with every number of experts.

    Args:
        routers: As given; none means all that are registered, but those that go by the sources of
            the data, as the text of a bench is one source, or by the task that was adapted to.
        options: Of each router, by its name.
        experts: Numbers of experts.

    Raises:
        ConfigError: There is no such router or option, one is given twice, or a router goes by
            the sources of the data.
    """
    wanted = list(routers) or [name for name in router_names() if _stands_alone(name)]
    if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise ConfigError(f"the router '{twice[0]}' is named twice; leave one of them out.")
    if unknown := sorted(options.keys() - set(wanted)):
        raise ConfigError(
            f"--router-arg sets an option of '{unknown[0]}', which is not among the routers to "
            f"train ({', '.join(wanted)}); add it to --routers."
        )
    found = [
        Case(
            router=name,
            options={**EQUAL_WORK.get(name, {}), **options.get(name, {})},
            num_experts=number,
        )
        for name in wanted
        for number in experts
    ]
    for name in wanted:
        if _goes_by_sources(name):
            raise ConfigError(
                f"the router '{own_router(name).name}' goes by the sources of the data, and the "
                "text of a bench is one source; leave it out of --routers."
            )
    names = [case.slug for case in found]
    if twice := sorted({it for it in names if names.count(it) > 1}):
        raise ConfigError(
            f"two routers would have the files {twice[0]}-*.json; rename one of them."
        )
    return found


def _stands_alone(router: str) -> bool:
    """Whether it is a router by itself, not one of sources or of a task that it learns."""
    return not _goes_by_sources(router) and router != TASK_CONDITIONED


def _goes_by_sources(router: str) -> bool:
    return "domain_ids" in find_router(own_router(router)).context


def build_model(setup: Setup, case: Case, seed: int) -> MoEModel:
    """The untrained model of a run; of one seed and shape, all but the gate has equal weights.

    Raises:
        ConfigError: The router refuses its options or the sizes.
    """
    torch.manual_seed(seed)
    return MoEModel(
        hidden_size=setup.hidden_size,
        num_experts=case.num_experts,
        experts_per_token=setup.top_k,
        num_layers=setup.num_layers,
        router_type=case.router,
        router=dict(case.options),
        vocab_size=setup.vocab_size,
        num_attention_heads=setup.num_heads,
        expert_hidden_size=setup.expert_hidden_size,
        capacity_factor=setup.capacity_factor,
    )


def try_training(setup: Setup, case: Case) -> None:
    """Route a few tokens forth and back, so that what cannot work is told before hours of work.

    Raises:
        ConfigError: It does not work; the message names the router.
    """
    small = dataclasses.replace(setup, num_layers=1, vocab_size=min(setup.vocab_size, 512))
    ids = torch.arange(_TRIAL_TOKENS).view(2, -1)
    try:
        loss = build_model(small, case, 0)(ids, labels=ids).loss
        loss.backward()
    except MoEError as error:
        raise ConfigError(f"the router '{case.name}' cannot be trained here: {error}") from None
    if not loss.isfinite():
        raise ConfigError(f"the router '{case.name}' gives a loss that is not finite.")
