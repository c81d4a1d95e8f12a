"""The option by which a user says that a profile or a trace of other weights is meant."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.errors import ConfigError

if TYPE_CHECKING:
    from moe_megatron.telemetry.values.profile import RoutingProfile


OF_OTHER_WEIGHTS = "--counted-on-other-weights"
"""The option, which `telemetry/values/router_digest.py` names where it refuses."""


def add_other_weights(parser: "argparse._ActionsContainer", what: str) -> None:
    """Let a parser take it.

    Args:
        parser: A parser, or one of its groups of options.
        what: The option that it speaks of, such as "--profile".
    """
    parser.add_argument(
        OF_OTHER_WEIGHTS,
        action="store_true",
        help=f"take {what} although the model had other routers when it was counted, as in an "
        "earlier step of its training",
    )


def profile_given(options: argparse.Namespace, name: str) -> "RoutingProfile | Path | None":
    """The profile that an option names, as what takes profiles takes it.

    Args:
        options: What a parser with the option gave.
        name: The option of the profile, such as "--profile".

    Raises:
        ConfigError: Other weights are meant, and no profile is given.
        DataError: The profile cannot be read.
    """
    path: Path | None = getattr(options, name.strip("-").replace("-", "_"))
    if not options.counted_on_other_weights:
        return path
    if path is None:
        raise ConfigError(f"{OF_OTHER_WEIGHTS} speaks of a {name} FILE; give both.")
    from moe_megatron.telemetry.values.profile import RoutingProfile

    return RoutingProfile.load(path).of_any_model()
