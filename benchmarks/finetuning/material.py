"""The model and the conversations that all contenders share, made once in the work's folder."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.finetuning.profiles import Profile
from benchmarks.gpu_report.converted import write_model
from benchmarks.ranks import ROOT
from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.files import publish
from moe_megatron.text.chat_template import chat_template_of
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
_TINY_VOCABULARY = 512
_QUIET = Execution(progress=False)
_NEARLY_FULL = 0.7
"""From which part of a row on a conversation has a row for itself, and little padding."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Where everything is."""

    megatron: Path
    """The model as a Megatron checkpoint."""
    hf: Path
    """The same weights as a Hugging Face folder."""
    train: Path
    """Conversations, one a line."""
    held_out: Path
    long: Path
    """Conversations to train on that fill most of a row, so that no two share one."""


def prepare(profile: Profile, work: Path) -> Material:
    """Make what is not there yet."""
    made = Material(
        megatron=work / "megatron",
        hf=work / "hf",
        train=work / "train.jsonl",
        held_out=work / "held_out.jsonl",
        long=work / "long.jsonl",
    )
    if not (made.hf / "config.json").exists():
        for folder in (made.megatron, made.hf):
            shutil.rmtree(folder, ignore_errors=True)  # of a command that was stopped
        _tiny_model(work, made) if profile.name == "tiny" else _real_model(made)
    if not made.long.exists():
        _write_conversations(profile, made)
    return made


def _real_model(made: Material) -> None:
    sys.path.append(str(ROOT / "examples" / "tour"))
    from real_model import UPCYCLING, real_model

    import_checkpoint(real_model(), made.megatron, upcycling=UPCYCLING, execution=_QUIET)
    export_checkpoint(made.megatron, made.hf, execution=_QUIET)


def _tiny_model(work: Path, made: Material) -> None:
    source = work / "random"
    shutil.rmtree(source, ignore_errors=True)
    write_model("tiny", source)
    shutil.copytree(
        demo_tokenizer(vocab_size=_TINY_VOCABULARY).directory, source, dirs_exist_ok=True
    )
    (source / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    import_checkpoint(source, made.megatron, execution=_QUIET)
    export_checkpoint(made.megatron, made.hf, execution=_QUIET)


def _write_conversations(profile: Profile, made: Material) -> None:
    sys.path.append(str(ROOT / "examples" / "tour"))
    from docstrings import conversations, rows

    train, held_out = conversations()
    apart = max(1, len(held_out) // profile.held_out)  # over all modules that are held out
    rows_held_out = rows(held_out[::apart][: profile.held_out])
    tokenizer = load_tokenizer(str(made.hf))
    wanted = profile.batch * profile.peft_steps
    long: list[dict[str, Any]] = []
    for row in rows(train):
        if len(long) < wanted and _fills(row, tokenizer, profile.length):
            long.append(row)
    for path, chosen in ((made.held_out, rows_held_out), (made.train, rows(train))):
        _write(path, chosen)
    _write(made.long, long)


def _fills(row: dict[str, Any], tokenizer: Tokenizer, length: int) -> bool:
    """Whether a conversation fits a row and leaves little of it."""
    text = chat_template_of(tokenizer).render(row["messages"])
    return _NEARLY_FULL * length < len(tokenizer.encode(text)) <= length


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    publish(path, "".join(json.dumps(row) + "\n" for row in rows))
