"""A look at a run that writes: its loss and its routing come as two lines, one after the other."""

import json
from pathlib import Path

from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.testing.written_run import step_record, step_routing, write_run
from moe_megatron.webapp.frames import encode_frame
from moe_megatron.webapp.news import NewsReader
from moe_megatron.webapp.run_reader import RunReader


def test_a_look_between_both_lines_of_a_step_does_not_lose_its_frame(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 3, history=0)
    reader = NewsReader(RunReader(run))
    before = reader.look(None)
    with (run / METRICS_FILE).open("a") as file:
        file.write(json.dumps(step_record(4).to_json_dict()) + "\n")
    between = reader.look(before)
    assert between.last_step == 4
    with (run / ROUTING_FILE).open("a") as file:
        file.write(json.dumps(step_routing(4).to_json_dict()) + "\n")
    after = reader.look(between)
    assert after.frame == encode_frame(step_routing(4).tokens_per_expert, 4, 4)
    assert reader.look(after).frame is after.frame, "nothing new, nothing made"
