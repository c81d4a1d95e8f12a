"""Tables of other libraries, such as a result of DuckDB, that give their rows as Arrow.

Most libraries of tables speak Arrow's interface for streams. Those that have a reader of their own
are not asked here.
"""

from typing import Any

from moe_megatron.data.objects.kinds import Ask, reads, source_of
from moe_megatron.data.shards import Source


@reads(lambda given: hasattr(given, "__arrow_c_stream__"))
def read_arrow_stream(given: Any, ask: Ask) -> tuple[Source, ...]:
    """What it streams, as an Arrow table."""
    import pyarrow  # type: ignore[import-untyped,unused-ignore]

    return source_of(pyarrow.table(given), ask)
