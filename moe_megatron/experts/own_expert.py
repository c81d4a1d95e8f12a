"""An expert in a file of the user's own: `path/to/my_expert.py:MyExpert`.

The class is an expert as any other, decorated with `@register_expert` or plain. It is found under
the file's name, without folders, and its hash (`config/own_code`). Only who was told by a person
which file to load calls `own_expert`.
"""

from dataclasses import replace

import torch

from moe_megatron import routing
from moe_megatron.config import ExpertConfig, MoEConfig
from moe_megatron.config.own_code import load_code, reading_signature
from moe_megatron.errors import ConfigError
from moe_megatron.experts.kinds import OWN_EXPERTS, ExpertKind, described, expert_builder
from moe_megatron.routing.guard import telling

_WHAT = "expert"
_ROWS = 8


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


def words_of(moe: MoEConfig) -> list[str]:
    """What tells another process of this machine, or a batch job, to load the user's own files.

    Raises:
        ConfigError: They were not given here.
    """
    if moe.num_experts is None:
        return []
    return [*routing.words_of(moe.router), *OWN_EXPERTS.words(moe.expert)]


def try_out(moe: MoEConfig, hidden_size: int, inner_size: int) -> None:
    """Give an expert of the user's own a few random rows, and none, in evaluation and in training.

    Args:
        moe: The experts of a model.
        hidden_size: Features of a row.
        inner_size: Inner features of an expert.

    Raises:
        ConfigError: It raises, or returns something else than as many rows of finite numbers.
    """
    if moe.num_experts is None or moe.expert.sha256 is None:
        return
    builder = expert_builder(moe)
    assert builder is not None, "it has a hash"
    # On the CPU, whatever the model is built on, and without a trace in the generators of the run.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        expert = builder(hidden_size, inner_size)
        for rows in (torch.randn(_ROWS, hidden_size), torch.zeros(0, hidden_size)):
            for training in (False, True):
                with telling(builder.kind.code, _WHAT):
                    output = expert.train(training)(rows)
                if not isinstance(output, torch.Tensor) or output.shape != rows.shape:
                    found = list(getattr(output, "shape", [])) or type(output).__name__
                    raise ConfigError(
                        f"the expert {builder.kind.place} was given rows of the shape "
                        f"{list(rows.shape)} and returned {found}; forward must map "
                        "[n, hidden_size] to the same shape, n being 0, too."
                    )
                if not bool(output.isfinite().all()):
                    raise ConfigError(
                        f"the expert {builder.kind.place} returns numbers that are not finite for "
                        "rows that all are."
                    )


def _loaded(spec: str) -> ExpertKind:
    code = load_code(spec, _WHAT)
    with reading_signature(code):
        return replace(described(code.label, code.found), code=code)
