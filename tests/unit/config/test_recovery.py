"""Values that the section of recovery refuses."""

import pytest

from moe_megatron.config import RecoveryConfig
from moe_megatron.errors import ConfigError


def test_number_of_restarts_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recovery.max_restarts must be at least 0, not -1\."):
        RecoveryConfig(max_restarts=-1)
