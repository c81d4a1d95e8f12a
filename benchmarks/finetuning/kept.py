"""Results that stay in the folder of the work, so that a command that was stopped goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moe_megatron.files import publish


def kept(
    work: Path, name: str, task: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The result of a task: the one that is there, or a new one.

    Args:
        work: Folder of the work.
        name: Of the result; a file name.
        task: What is done, as JSON can say it. The result of another task of that name is made
            anew.
        make: Does it.

    Returns:
        The result; or, where a rank failed, its last words as `error`, which are not kept.
    """
    path = work / f"{name}.json"
    asked = json.loads(json.dumps(dict(task)))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["task"] == asked:
            print(f"{name}: there already", flush=True)
            return dict(found["result"])
    print(f"{name} ...", flush=True)
    try:
        result = make()
    except (RuntimeError, AssertionError) as error:
        print(error, flush=True)
        return {"error": str(error).strip().splitlines()[-1]}
    publish(path, json.dumps({"task": asked, "result": result}, indent=1) + "\n")
    return result
