"""`moe-megatron verify`: check the bytes of a checkpoint, or that a conversion kept the model."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.checkpoint.formats.torch_dist import resolve
from moe_megatron.checkpoint.integrity.check import check_folder
from moe_megatron.checkpoint.integrity.manifest import MANIFEST
from moe_megatron.checkpoint.integrity.seal import seal
from moe_megatron.checkpoint.progress import amount
from moe_megatron.cli.parser import Parser
from moe_megatron.files import user_path
from moe_megatron.platform.device import DEVICE_VARIABLE

if TYPE_CHECKING:
    from moe_megatron.checkpoint.verify.verification import Verification

MISMATCH = 1
"""Exit code when both sides could be read and differ."""
UNJUDGED = 3
"""Exit code when all weights are the same, and the logits that were asked for say nothing."""

_EPILOG = """\
The exit code is 0 if nothing differs, 1 on a mismatch, 2 if a folder cannot be read, and 3 if all
weights are the same but logits, which were not left out, could not be compared or judged; the last
line says why.

examples:
  moe-megatron verify runs/demo_moe/checkpoints
  moe-megatron verify path/to/olmoe checkpoints/olmoe
  moe-megatron verify runs/demo_moe/checkpoints exported/demo_moe --no-logits
  moe-megatron verify path/to/qwen3_moe checkpoints/qwen3_moe --length 256 --json"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron verify`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: A folder is not a checkpoint, or is damaged.
        MappingError: The model family is unknown.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.seal and options.converted is not None:
        parser.error("--seal takes one folder")
    if options.converted is None:
        return _verify_bytes(options.source, write=options.seal, as_json=options.json)
    os.environ[DEVICE_VARIABLE] = "cpu"  # before torch is imported: both sides run on the CPU
    from moe_megatron.checkpoint.verify import verification

    found = verification.verify(
        options.source,
        options.converted,
        verification.Options(
            logits=not options.no_logits,
            sequences=options.sequences,
            length=options.length,
            precision=options.precision,
            tolerance=options.tolerance,
            progress=not options.quiet,
        ),
    )
    print(json.dumps(found.to_dict(), indent=2) if options.json else _text(found))
    if not found.passed:
        return MISMATCH
    return UNJUDGED if found.unjudged and found.logits_wanted else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron verify",
        description="With one folder: check every byte of a Megatron checkpoint against its "
        "checksums. With two: compare a conversion with its source, in either direction: every "
        "tensor has a counterpart, checksums match, all weights are identical, and both sides "
        "compute the same logits on the CPU. Keeps one layer of a model in memory at a time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=user_path, help="folder that was converted, or the only one")
    parser.add_argument(
        "converted", type=user_path, nargs="?", help="folder that the conversion wrote"
    )
    parser.add_argument(
        "--seal",
        action="store_true",
        help="write checksums of the only folder as it is now, after a change on purpose",
    )
    parser.add_argument("--no-logits", action="store_true", help="compare weights only")
    parser.add_argument(
        "--sequences",
        type=_positive,
        default=2,
        metavar="N",
        help="number of sequences of random tokens (default: 2)",
    )
    parser.add_argument(
        "--length",
        type=_positive,
        default=64,
        metavar="N",
        help="tokens per sequence (default: 64)",
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="precision of both sides (default: fp32); bf16 logits are reported but not judged",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest allowed difference of fp32 logits, relative to their spread if that is above "
        "1 (default: 1e-4; rounding in a deep model may need more)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _verify_bytes(path: Path, *, write: bool, as_json: bool) -> int:
    folder = path if (path / MANIFEST).is_file() else resolve(path)
    if write:
        seal(folder)
    found = check_folder(folder)
    if as_json:
        told = {"path": str(found.folder), "state": found.state, "problems": found.problems}
        print(json.dumps(told, indent=2))
    else:
        lines = found.problems or ([found.reason] if found.state != "valid" else [])
        print("\n".join([f"{found.folder}: {found.state}", *(f"  {line}" for line in lines)]))
    return 0 if found.state == "valid" else MISMATCH


def _text(found: "Verification") -> str:
    lines = [f"{found.family}: {found.source} and {found.converted}"]
    lines += [f"structure  {problem}" for problem in found.structure]
    if not found.structure:
        lines.append("structure  every tensor has a counterpart of the same shape")
    lines += _checksums(found.blocks, found.checksums)
    lines += _weights(found)
    lines += _logits(found)
    lines += [f"note       {limit}" for limit in (*found.limits, *found.remarks)]
    return "\n".join([*lines, _verdict(found)])


def _verdict(found: "Verification") -> str:
    if not found.passed:
        return "NOT the same"
    if not found.unjudged:
        return "the same"
    compared = "compared" if found.logits is None else "judged"
    return f"weights equal; logits not {compared}: {found.unjudged}"


def _checksums(blocks: int | None, problems: Sequence[str]) -> list[str]:
    if problems:
        return [f"checksums  {problem}" for problem in problems]
    return [f"checksums  {'none' if blocks is None else f'all {blocks} match'}"]


def _weights(found: "Verification") -> list[str]:
    if found.weights is None:
        return ["weights    not compared: the structure differs"]
    compared = f"{found.weights.matrices} matrices, {amount(found.weights.nbytes)}"
    casts = "".join(f"; {count} {cast}" for cast, count in found.weights.casts.items())
    if not found.weights.differences:
        return [f"weights    bitwise identical ({compared}{casts})"]
    return [f"weights    {difference}" for difference in found.weights.differences]


def _logits(found: "Verification") -> list[str]:
    logits = found.logits
    if logits is None:
        return [f"logits     not compared: {found.logits_skipped}"]
    judged = "equal" if logits.agree else "DIFFERENT"
    if found.unjudged:
        judged = "not judged"
    return [
        f"logits     {judged} ({logits.precision}, {logits.positions} positions): max difference "
        f"{logits.max_difference:.2e}, mean {logits.mean_difference:.2e}, same top-1 "
        f"{logits.top1_agreement:.1%}; limit {logits.tolerance:.1e}"
    ]
