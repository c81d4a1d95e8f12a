"""Output that cannot be written is lost, and nothing else happens."""

import io
import sys

from moe_megatron.cli.output import LastingOutput, lasting_output
from moe_megatron.telemetry.sinks.health import SinkHealth


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_and_nothing_is_raised(caplog) -> None:
    output = LastingOutput(_Full(), SinkHealth())
    assert output.write("text") == 4
    assert "sink console failed: No space left on device" in caplog.text


def test_a_stream_that_was_closed_has_nothing_to_flush(caplog) -> None:
    stream = io.StringIO()
    output = LastingOutput(stream, SinkHealth())
    stream.close()
    output.flush()
    assert caplog.text == ""


def test_the_streams_come_back() -> None:
    before = sys.stdout, sys.stderr
    with lasting_output():
        assert isinstance(sys.stdout, LastingOutput)
    assert (sys.stdout, sys.stderr) == before
