"""Models from the Hub and to it: a real client, and a server on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.checkpoint.hub import push_to_hub
from moe_megatron.errors import CheckpointError
from moe_megatron.testing.hub_server import HubServer, serve_hub
from moe_megatron.testing.tiny_models import save

TOKEN = "hf_ThisIsASecretThatNobodyMaySee"
STRAY = {
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "original/model.safetensors": b"another format",
    "consolidated.safetensors": b"a second copy",
}

SCRIPT = """
import json, logging, sys, traceback
from pathlib import Path
from moe_megatron.checkpoint.hub import local_folder, push_to_hub
from moe_megatron.errors import CheckpointError

logging.basicConfig(level=logging.DEBUG)
answers = {}
for name, action in json.loads(sys.argv[1]).items():
    try:
        call = push_to_hub if action[0] == "push" else local_folder
        answers[name] = str(call(*action[1:]))
    except CheckpointError as error:
        traceback.print_exc()
        answers[name] = f"{type(error).__name__}: {error}"
Path("answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve_hub() as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save("mixtral", tmp_path / "model", fused=False)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


def ask(
    folder: Path, url: str, actions: dict[str, list[str]], **environment: str
) -> tuple[dict[str, str], str]:
    """What each action answered, and everything that was printed."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(actions)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "answers.json").read_text()), ended.stdout + ended.stderr


@pytest.mark.slow
def test_models_come_from_the_hub_once_and_go_there(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    content = {path.name: path.read_bytes() for path in model.iterdir()}
    hub.repositories["someone/moe"] = {**content, **STRAY}
    hub.repositories["someone/gated"] = dict(content)
    hub.gated.add("someone/gated")
    (model / "modeling_evil.py").write_text("raise SystemExit")
    answers, printed = ask(
        tmp_path,
        hub.url,
        {
            "found": ["get", "someone/moe"],
            "missing": ["get", "someone/else"],
            "gated": ["get", "someone/gated"],
            "pushed": ["push", "model", "someone/new"],
            "half": ["push", "home", "someone/half"],
        },
    )
    fetched = Path(answers["found"])
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == content
    assert f"{hub.url} has no such model that you can see. Check the id" in answers["missing"]
    assert "access must be granted by its owner. Request it on" in answers["gated"]
    assert answers["pushed"] == f"{hub.url}/someone/new"
    assert hub.repositories["someone/new"] == content
    assert hub.private["someone/new"] is True
    assert "home holds no config.json" in answers["half"]
    assert "someone/half" not in hub.repositories
    assert f"Bearer {TOKEN}" in hub.tokens
    assert "CheckpointError" in printed, "there are tracebacks to look at"
    assert TOKEN not in printed
    assert TOKEN not in json.dumps(answers)

    asked = len(hub.requests)
    actions = {"cached": ["get", "someone/moe"], "other": ["get", "someone/moe2"]}
    offline, _ = ask(tmp_path, hub.url, actions, HF_HUB_OFFLINE="1")
    assert offline["cached"] == str(fetched)
    assert "HF_HUB_OFFLINE is set, and" in offline["other"]
    assert "'hf download someone/moe2', or give the path of a model folder" in offline["other"]
    assert len(hub.requests) == asked
    unreachable, _ = ask(tmp_path, "http://127.0.0.1:9", actions)
    assert unreachable["cached"] == str(fetched)
    assert "http://127.0.0.1:9 cannot be reached, and" in unreachable["other"]


def test_checkpoint_of_megatron_is_not_pushed(tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    with pytest.raises(CheckpointError, match="is a Megatron checkpoint; convert it first"):
        push_to_hub(tmp_path, "someone/model")
