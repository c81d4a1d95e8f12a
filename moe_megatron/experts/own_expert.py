"""An expert in a file of the user's own: `path/to/my_expert.py:MyExpert`.

The class is an expert as any other, decorated with `@register_expert` or plain. It is found under
the file's name, without folders, and its hash (`config/own_code`). Only who was told by a person
which file to load calls `own_expert`.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_megatron import routing
from moe_megatron.config import ExpertConfig, MoEConfig
from moe_megatron.config.own_code import load_code, reading_signature
from moe_megatron.errors import ConfigError
from moe_megatron.experts.kinds import OWN_EXPERTS, ExpertKind, described, expert_builder
from moe_megatron.routing.guard import telling

_WHAT = "expert"
_ROWS = 8
_TOLERANCE = 1e-3
"""Of the largest number: products of other sizes round otherwise."""


def own_expert(given: ExpertConfig | str) -> ExpertConfig:
    """Load an expert's file, if that is what a person has named.

    Args:
        given: A name, or a name with options. The path of a Python file, a colon and a class in it
            is a file; whatever else is left as it is. So is a note of a file with its hash.

    Returns:
        The same choice; of a file, with its name without folders and with its hash.

    Raises:
        ConfigError: There is no such file or class, it raises when it is loaded, or is no expert.
    """
    return OWN_EXPERTS.taken(given, _loaded)


def expert_given_again(given: ExpertConfig | str, noted: ExpertConfig) -> ExpertConfig:
    """The expert that a person has given for a run or a model that notes one.

    Args:
        given: As for `own_expert`.
        noted: What the run or model was saved with.

    Returns:
        The noted expert with its options, and the hash of the file that was given.

    Raises:
        ConfigError: It is another expert, or its file has changed and is not said to replace it.
    """
    return OWN_EXPERTS.given_again(own_expert(given), noted)


def own_file_words(moe: MoEConfig) -> list[str]:
    """What tells another process of this machine, or a batch job, to load the user's own files.

    Raises:
        ConfigError: They were not given here.
    """
    if moe.num_experts is None:
        return []
    return [*routing.router_words(moe.router), *OWN_EXPERTS.words(moe.expert)]


def try_expert(moe: MoEConfig, hidden_size: int, inner_size: int) -> None:
    """Give an expert of the user's own a few random rows, and none, in evaluation and in training.

    Args:
        moe: The experts of a model.
        hidden_size: Features of a row.
        inner_size: Inner features of an expert.

    Raises:
        ConfigError: It raises, returns something else than as many rows of finite numbers, or a row
            depends on others.
    """
    if moe.num_experts is None or moe.expert.is_model_mlp or not OWN_EXPERTS.holds(moe.expert):
        return
    builder = expert_builder(moe)
    if builder is None or not builder.kind.is_of_users:
        return
    # On the CPU, whatever the model is built on, and without a trace in the generators of the run.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        expert = builder(hidden_size, inner_size)
        rows = torch.randn(_ROWS, hidden_size)
        for training in (False, True):
            expert.train(training)
            _computed(expert, builder.kind, rows[:0])
            _compute_in_parts(expert, builder.kind, rows)


def _computed(expert: nn.Module, kind: ExpertKind, rows: Tensor, seed: int = 0) -> Tensor:
    """What an expert makes of rows, checked."""
    torch.manual_seed(seed)
    with telling(kind.code, _WHAT):
        output = expert(rows)
    if not isinstance(output, Tensor) or output.shape != rows.shape:
        found = list(getattr(output, "shape", [])) or type(output).__name__
        raise ConfigError(
            f"the expert {kind.place} was given rows of the shape {list(rows.shape)} and returned "
            f"{found}; forward must map [n, hidden_size] to the same shape, n being 0, too."
        )
    if not bool(output.isfinite().all()):
        raise ConfigError(
            f"the expert {kind.place} returns numbers that are not finite for rows that all are."
        )
    return output


def _compute_in_parts(expert: nn.Module, kind: ExpertKind, rows: Tensor) -> None:
    """Compare rows that come together with the same rows in two parts."""
    together = _computed(expert, kind, rows)
    if not torch.equal(together, _computed(expert, kind, rows, seed=1)):
        return  # dropout, say, which draws other numbers for other rows
    parts = torch.cat([_computed(expert, kind, part) for part in (rows[:3], rows[3:])])
    difference = float((together - parts).abs().max())
    if difference > _TOLERANCE * float(together.abs().max()):
        raise ConfigError(
            f"the expert {kind.place} makes something else of a row when other rows come with it "
            f"(by {difference:.2g}). Which rows come together depends on the layout, so compute "
            "each row alone, along the last axis, as in x - x.mean(-1, keepdim=True)."
        )


def _loaded(spec: str) -> ExpertKind:
    code = load_code(spec, _WHAT)
    with reading_signature(code):
        return replace(described(code.label, code.found), code=code)
