"""`moe-megatron pool`: train, and change the number of experts on the way."""

from collections.abc import Sequence
from pathlib import Path

from moe_megatron.cli.launching import launcher, say
from moe_megatron.cli.output import lasting_output
from moe_megatron.cli.pretrain import option_parser, read_options
from moe_megatron.cli.words import read_words
from moe_megatron.errors import ConfigError

PICTURE = "loss.png"
"""In the folder of the stages: their losses in one picture."""

_EPILOG = """\
Each stage is a run in a folder of its own below --run-dir; made again, the command goes on where it
was. docs/experts.md says what a change keeps.

example:
  moe-megatron pool --config demo_moe --change 100:grow=16 --change 200:keep=12 --noise 0.002"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron pool`.

    Returns:
        The exit code.

    Raises:
        MoEError: A stage or a change cannot be made.
    """
    parser = option_parser(prog="moe-megatron pool")
    parser.epilog = _EPILOG
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="STEP:WHAT=N",
        help="after this step, grow to N experts, keep the N most used, or merge into N "
        "(repeatable)",
    )
    parser.add_argument(
        "--noise", type=float, default=0.0, metavar="STD", help="makes copies of experts differ"
    )
    parser.add_argument("--num-processes", type=int, help="processes to start on this machine")
    ours, flags = read_words(parser, argv)
    options = read_options(ours, flags)
    if not ours.change:
        raise ConfigError("a change is needed, as in --change 100:grow=16; or use train.")
    from moe_megatron.run.stages import ChangeAt, train_in_stages  # loads torch

    changes = [ChangeAt.read(text, noise=ours.noise) for text in ours.change]
    with lasting_output():
        code, folders = train_in_stages(options.config, changes, launcher(ours), say=say)
    if code == 0:
        from moe_megatron.training.comparison import compare

        picture = Path(options.config.run_dir) / PICTURE
        compare({it.name.replace("-", " ", 1): it for it in folders}).plot(picture)
        print(f"loss across the changes: {picture}")
    return code
