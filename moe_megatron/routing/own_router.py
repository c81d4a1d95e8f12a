"""A router in a file of the user's own: `path/to/my_router.py:my_router`.

The function is a router as any other, decorated with `@register_router` or plain. It is found under
the file's name, without folders, and its hash (`config/own_code`), and not under the name that a
decorator gives it, so that two files, or two versions of one, never meet. Only who was told by a
person which file to load calls `own_router`.
"""

from dataclasses import replace

import torch

from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.config.own_code import load_code, reading_signature
from moe_megatron.errors import ConfigError
from moe_megatron.routing.registry import DECLARED, OWN_ROUTERS, Router, bind, described

_TOKENS = 32


def own_router(given: RouterConfig | str) -> RouterConfig:
    """Load a router's file, if that is what a person has named.

    Args:
        given: A name, or a name with options. The path of a Python file, a colon and a function in
            it is a file; whatever else is left as it is. So is a note of a file with its hash.

    Returns:
        The same choice; of a file, with its name without folders and with its hash.

    Raises:
        ConfigError: There is no such file or function, it raises when it is loaded, or is no
            router.
    """
    return OWN_ROUTERS.taken(given, _loaded)


def given_again(given: RouterConfig | str, noted: RouterConfig) -> RouterConfig:
    """The router that a person has given for a run or a model that notes one.

    Args:
        given: As for `own_router`.
        noted: What the run or model was saved with.

    Returns:
        The noted router with its options, and the hash of the file that was given.

    Raises:
        ConfigError: It is another router, or its file has changed and is not said to replace it.
    """
    return OWN_ROUTERS.given_again(own_router(given), noted)


def words_of(router: RouterConfig) -> list[str]:
    """What tells another process of this machine, or a batch job, to load the same file.

    Raises:
        ConfigError: It was not given here.
    """
    return OWN_ROUTERS.words(router)


def try_out(moe: MoEConfig, hidden_size: int) -> None:
    """Route a few random tokens with a router of the user's own, in evaluation and in training.

    Args:
        moe: The experts and the router of a model.
        hidden_size: Features of what enters its gate.

    Raises:
        ConfigError: It raises, or returns what is no routing.
    """
    if moe.num_experts is None or moe.router.sha256 is None:
        return
    route = bind(moe)
    drawn = torch.Generator().manual_seed(0)
    # On the CPU, whatever the model is built on, and without a trace in the generators of the run.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        hidden_TH = torch.randn(_TOKENS, hidden_size, generator=drawn)
        rows = route.gate_tensors(moe.num_experts, hidden_size)["weight"].shape[0]
        logits_TE = torch.randn(_TOKENS, rows, generator=drawn)
        state = route.router.state
        for training in (False, True):
            route(
                logits_TE,
                hidden=hidden_TH,
                padding=None,
                training=training,
                expert_bias=torch.zeros(moe.num_experts) if moe.expert_bias else None,
                state=None if state is None else state.first(moe.num_experts),
                token_ids=torch.randint(0, 100, (_TOKENS,), generator=drawn),
                domain_ids=torch.full((_TOKENS,), -1),
            )


def _loaded(spec: str) -> Router:
    code = load_code(spec)
    if isinstance(code.found, type) or not callable(code.found):
        kind = "a class" if isinstance(code.found, type) else type(code.found).__name__
        raise ConfigError(
            f"{code.place} is {kind}, not a router; a router is a function (logits, *, top_k) that "
            "returns a Routing."
        )
    router = next((it for it in reversed(DECLARED) if it.function is code.found), None)
    if router is None:
        with reading_signature(code, "router"):
            router = described(code.label, code.found)
    return replace(router, name=code.label, code=code)
