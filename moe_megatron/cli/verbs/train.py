"""`moe-megatron train`: train a model on this machine's CPU or GPUs."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moe_megatron.cli.launching import launcher
from moe_megatron.cli.output import lasting_output
from moe_megatron.cli.pretrain import option_parser, read_options
from moe_megatron.cli.words import read_words
from moe_megatron.config import CONFIG_FILE, dump_yaml
from moe_megatron.config.checkpoint_files import CHECKPOINTS
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

_EPILOG = """\
examples:
  moe-megatron train
  moe-megatron train --config demo_moe --train-iters 50 --set moe.top_k=4
  moe-megatron train --router my_router.py:my_router --router-arg sharpness=2.0
  moe-megatron train --resume runs/demo_moe"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron train`.

    Returns:
        The exit code.

    Raises:
        MoEError: The run cannot start.
    """
    parser = option_parser(prog="moe-megatron train")
    parser.epilog = _EPILOG
    parser.add_argument(
        "--resume", type=user_path, metavar="DIR", help="resume the run in this folder"
    )
    parser.add_argument("--num-processes", type=int, help="processes to start on this machine")
    ours, flags = read_words(parser, argv)
    resumed: Path | None = ours.resume
    if resumed is not None:
        from moe_megatron.run.folder import check_resumable

        _refuse_contradictions(ours, flags)
        checkpoints = check_resumable(resumed)
        if ours.config is None:
            ours.config = str(resumed / CONFIG_FILE)
        ours.run_dir = str(resumed)
        flags = ["--load", str(checkpoints), *flags]
    options = read_options(ours, flags)
    if resumed is not None:
        from moe_megatron.run.folder import continued

        given = {word.partition("=")[0].removeprefix("--") for word in flags}
        options = replace(options, config=continued(options.config, keep=given))
    if options.print_config:
        print(dump_yaml(options.config), end="")
        return 0
    launch = launcher(ours, fresh=resumed is None)
    with lasting_output():
        return launch(options.config)


_NOT_WITH_RESUME = {
    "--load": "it resumes from the checkpoints of its own folder",
    "--finetune": "it would start at step 0 and write over what it resumes",
    "--run-dir": "it goes on in the folder that it names",
}


def _refuse_contradictions(ours: Namespace, flags: Sequence[str]) -> None:
    given = {flag.partition("=")[0] for flag in flags}
    given |= set() if ours.run_dir is None else {"--run-dir"}
    for flag, why in _NOT_WITH_RESUME.items():
        if flag in given:
            raise ConfigError(
                f"--resume and {flag} contradict each other: {why}. Leave one out; for a new run "
                f"from the weights of {ours.resume}, give --load {ours.resume / CHECKPOINTS} "
                "--finetune and another --run-dir."
            )
