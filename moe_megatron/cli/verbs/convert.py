"""`moe-megatron convert`: turn a Hugging Face model into a Megatron checkpoint, or back."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.checkpoint.convert import (
    Execution,
    Report,
    export_checkpoint,
    import_checkpoint,
)
from moe_megatron.checkpoint.edit.fewer_experts import FewerExperts, KeepMostUsed, MergeLeastUsed
from moe_megatron.checkpoint.edit.pool_change import Change, Grow
from moe_megatron.checkpoint.edit.selection import Selection
from moe_megatron.checkpoint.edit.upcycle import Upcycling
from moe_megatron.checkpoint.formats.hf_folder import CONFIG
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.checkpoint.progress import amount
from moe_megatron.checkpoint.resize import change_experts
from moe_megatron.cli.other_weights import add_other_weights, profile_given
from moe_megatron.cli.parser import Parser
from moe_megatron.config.checkpoint_files import METADATA, TRACKER, is_megatron_checkpoint
from moe_megatron.errors import CheckpointError
from moe_megatron.files import user_path

_EPILOG = """\
The direction is detected from the source. A Megatron checkpoint with another number of experts
(--grow, --keep-experts, --merge-experts) stays one, of the same step, for --load.

examples:
  moe-megatron convert allenai/OLMoE-1B-7B-0924 checkpoints/olmoe
  torchrun pretrain_moe.py --config checkpoints/olmoe/release/config.yaml --load checkpoints/olmoe
  moe-megatron convert runs/demo_moe/checkpoints exported/demo_moe --dtype bf16
  moe-megatron convert path/to/mixtral checkpoints/small --experts 0,3,5-7 --dry-run
  moe-megatron convert path/to/mixtral checkpoints/half --keep-experts 4
  moe-megatron convert path/to/qwen3 checkpoints/upcycled --upcycle 8 --top-k 2
  moe-megatron convert runs/demo_moe/checkpoints checkpoints/grown --grow 16"""
_ON_IMPORT = ("layers", "experts", "profile", "upcycle", "granularity")
_ON_CHANGE = ("layers", "experts", "upcycle", "granularity", "layout", "max_shard_size", "dtype")
_UNITS = {"": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron convert`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: The source is damaged, or the destination cannot be written.
        MappingError: Tensors have no counterpart on the other side.
    """
    options = _parser().parse_args(argv)
    options.source = _local(options.source)
    report = _run(options, is_export=_is_megatron(options.source))
    print(report.plan.describe() if options.dry_run else _text(report))
    for limit in (*report.limits, *report.remarks):
        print(f"note: {limit}", file=sys.stderr)
    for name in report.nonfinite:
        print(f"warning: {name} holds NaN or infinities; it was converted as is", file=sys.stderr)
    return 0


def numbers(text: str) -> tuple[int, ...]:
    """Parse numbers and ranges, such as "0,3,5-7", in the order given.

    Raises:
        ArgumentTypeError: The text has another form.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else True)):
            raise argparse.ArgumentTypeError(
                f"'{part}' is neither a number nor a range; write, for example, 0,3,5-7"
            )
        end = int(last or first)
        if end < int(first):
            raise argparse.ArgumentTypeError(
                f"the range {part} runs backwards; write {last}-{first}"
            )
        found.extend(range(int(first), end + 1))
    return tuple(found)


def size(text: str) -> int:
    """Parse a number of bytes, such as 5GB, 512MiB or 1000000.

    Raises:
        ArgumentTypeError: The text has another form.
    """
    digits = text.strip().rstrip("BGIMbgim")
    unit = text.strip()[len(digits) :].upper()
    if not digits.isdecimal() or int(digits) < 1 or unit not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a size; write, for example, 5GB or 512MiB"
        )
    return int(digits) * _UNITS[unit]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron convert",
        description="Convert a Hugging Face model folder to a Megatron checkpoint, which loads "
        "with any parallel sizes, or a Megatron checkpoint to a Hugging Face folder. Needs no GPU "
        "and only a constant amount of memory. An interrupted conversion continues when it is "
        "started again; the destination appears once it is complete.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="folder to read, or owner/name of a model on the Hub")
    parser.add_argument("destination", type=user_path, help="folder to write")
    parser.add_argument("--dtype", metavar="TYPE", help="bf16, fp16 or fp32 (default: unchanged)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of threads (default: by number of cores)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the destination")
    parser.add_argument(
        "--restart", action="store_true", help="discard what an interrupted conversion wrote"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    to_megatron = parser.add_argument_group("from Hugging Face to Megatron")
    to_megatron.add_argument(
        "--layers", type=numbers, metavar="LIST", help="import only these layers, counted from 0"
    )
    to_megatron.add_argument(
        "--experts", type=numbers, metavar="LIST", help="import only these experts, counted from 0"
    )
    to_megatron.add_argument(
        "--keep-experts",
        type=int,
        metavar="N",
        help="keep only the N experts of each layer that a routing profile shows as most used",
    )
    to_megatron.add_argument(
        "--merge-experts",
        type=int,
        metavar="N",
        help="the same, but merge the other experts into the N kept ones",
    )
    to_megatron.add_argument(
        "--profile",
        type=user_path,
        metavar="FILE",
        help="routing profile to use (default: the one beside the source)",
    )
    add_other_weights(to_megatron, "--profile")
    to_megatron.add_argument(
        "--upcycle", type=int, metavar="N", help="make N experts from each MLP of a dense model"
    )
    to_megatron.add_argument(
        "--granularity",
        type=int,
        metavar="G",
        help="with --upcycle: experts are 1/G of an MLP, and a token visits whole sets of them",
    )
    to_megatron.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="experts per token after --upcycle (default: 2 x granularity) or --grow (default: "
        "multiplied as the experts are)",
    )
    to_megatron.add_argument(
        "--noise",
        type=float,
        metavar="STD",
        help="standard deviation of noise that makes copies differ, for --upcycle and --grow",
    )
    in_training = parser.add_argument_group("a Megatron checkpoint whose training goes on")
    in_training.add_argument(
        "--grow",
        type=int,
        metavar="N",
        help="split experts until each layer has N; --keep-experts and --merge-experts work, too",
    )
    to_hf = parser.add_argument_group("from Megatron to Hugging Face")
    to_hf.add_argument(
        "--layout",
        choices=["fused", "classic"],
        help="fused: all experts in one tensor, as in transformers 5; classic: one tensor per "
        "expert, which every version reads (default: as imported, else classic)",
    )
    to_hf.add_argument(
        "--max-shard-size", type=size, metavar="SIZE", help="largest size of a file, such as 5GB"
    )
    return parser


def _local(source: str) -> Path:
    """The source as a folder, fetched from the Hub if it looks like owner/name and not a path."""
    folder = given_folder(source)
    owner, slash, _ = source.partition("/")
    return local_folder(source) if slash and owner and not Path(owner).exists() else folder


def _is_megatron(source: Path) -> bool:
    """Whether the source is a Megatron checkpoint; otherwise it is a Hugging Face model.

    Raises:
        CheckpointError: It is neither.
    """
    if not source.is_dir():
        raise CheckpointError(
            f"{source} is not a folder; give the folder of a Hugging Face model or of a Megatron "
            "checkpoint."
        )
    if is_megatron_checkpoint(source):
        return True
    if (source / CONFIG).is_file():
        return False
    raise CheckpointError(
        f"{source} is neither a Hugging Face model ({CONFIG}) nor a finished Megatron checkpoint "
        f"({METADATA}, or {TRACKER} around it)."
    )


def _run(options: argparse.Namespace, *, is_export: bool) -> Report:
    options.profile = profile_given(options, "--profile")
    execution = Execution(
        workers=options.workers,
        resume=not options.restart,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        progress=not options.quiet,
    )
    change = _change(options)
    if is_export and change is not None:
        _refuse(options, _ON_CHANGE, "changed in its number of experts")
        return change_experts(options.source, options.destination, change, execution=execution)
    if is_export:
        if options.top_k is not None or options.noise is not None:
            raise CheckpointError(
                "--top-k and --noise change a Megatron checkpoint only together with --grow; add "
                "it, or leave them out."
            )
        _refuse(options, _ON_IMPORT, "a Megatron checkpoint; export all of it")
        return export_checkpoint(
            options.source,
            options.destination,
            fused=None if options.layout is None else options.layout == "fused",
            dtype=options.dtype,
            max_shard_bytes=options.max_shard_size,
            execution=execution,
        )
    _refuse(options, ("layout", "max_shard_size"), "a Hugging Face model; leave it out")
    _refuse(options, ("grow",), "a Hugging Face model; import it first")
    return import_checkpoint(
        options.source,
        options.destination,
        selection=Selection(layers=options.layers, experts=options.experts),
        experts=_fewer_experts(options),
        upcycling=_upcycling(options),
        dtype=options.dtype,
        execution=execution,
    )


def _fewer_experts(options: argparse.Namespace) -> FewerExperts | None:
    kept, merged = options.keep_experts, options.merge_experts
    if kept is not None and merged is not None:
        raise CheckpointError(
            "--keep-experts and --merge-experts exclude each other; give only one of them."
        )
    if kept is None and merged is None:
        if options.profile is not None:
            raise CheckpointError(
                "--profile has no effect without --keep-experts or --merge-experts; add one."
            )
        return None
    if kept is not None:
        return KeepMostUsed(num_experts=kept, profile=options.profile)
    return MergeLeastUsed(num_experts=merged, profile=options.profile)


def _change(options: argparse.Namespace) -> Change | None:
    """The change to a Megatron checkpoint, if one is asked for."""
    if options.grow is None:
        wanted = (options.keep_experts, options.merge_experts)
        if wanted == (None, None):
            return None
        _refuse(options, ("top_k", "noise"), "not grown (--grow)")
        return _fewer_experts(options)
    if options.keep_experts is not None or options.merge_experts is not None:
        raise CheckpointError(
            "--grow makes more experts, --keep-experts and --merge-experts fewer; give one of them."
        )
    return Grow(
        num_experts=options.grow,
        top_k=options.top_k,
        noise=options.noise or 0.0,
        profile=options.profile,
    )


def _upcycling(options: argparse.Namespace) -> Upcycling | None:
    if options.upcycle is not None:
        slices = 1 if options.granularity is None else options.granularity
        return Upcycling(
            num_experts=options.upcycle,
            top_k=2 * slices if options.top_k is None else options.top_k,
            granularity=slices,
            noise=options.noise or 0.0,
        )
    for name in ("top_k", "granularity", "noise"):
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise CheckpointError(f"{flag} has no effect without --upcycle; add it.")
    return None


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise CheckpointError(
                f"--{name.replace('_', '-')} has no effect when the source is {why}."
            )


def _text(report: Report) -> str:
    assert report.outcome is not None, "dry runs print their plan"
    resumed = report.outcome.resumed_bytes
    taken = f", {amount(resumed)} of it by an earlier attempt" if resumed else ""
    return (
        f"{report.family}: {amount(report.plan.nbytes)} in {report.outcome.seconds:.1f} s "
        f"({report.gigabytes_per_second:.2f} GB/s{taken})\n{report.destination}"
    )
