"""The `moe-megatron` command: one verb, one module, imported when it is used."""

import sys
from collections.abc import Callable, Sequence

from moe_megatron.cli.pretrain import INTERRUPTED, report_error
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import EXIT_CODE, ConfigError, MoEError

Verb = Callable[[Sequence[str]], int]

_USAGE = """\
usage: moe-megatron VERB [OPTIONS]

Train, watch, tune and ship Mixture-of-Experts models on Megatron-Core.

verbs:
  train     train a model on this machine's CPU or GPUs
  report    write the HTML report of a run
  data      turn text into indexed datasets, or inspect them
  convert   turn a Hugging Face model into a Megatron checkpoint, or back
  verify    say whether a conversion gave the same model
  inspect   say what a checkpoint holds
  monitor   start a Prometheus for a run, in its folder
  grafana   write, check or push Grafana dashboards and Prometheus rules
  doctor    say what this machine has and what would be used

`moe-megatron VERB --help` explains a verb.

example:
  moe-megatron train --config demo_moe
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_USAGE, end="")
        return 0
    try:
        return _find(words[0])(words[1:])
    except MoEError as error:
        report_error(error, debug="--debug" in words)
        return EXIT_CODE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        sys.stderr.close()
        return 0


def _find(name: str) -> Verb:
    verbs = {
        "train": _train,
        "report": _report,
        "data": _data,
        "convert": _convert,
        "verify": _verify,
        "inspect": _inspect,
        "monitor": _monitor,
        "grafana": _grafana,
        "doctor": _doctor,
    }
    if name not in verbs:
        raise ConfigError(
            f"moe-megatron has no verb '{name}'.{nearest(name, verbs)} "
            f"Verbs are: {join_words(list(verbs), 'and')}."
        )
    return verbs[name]


def _train(words: Sequence[str]) -> int:
    from moe_megatron.cli.train import train

    return train(words)


def _report(words: Sequence[str]) -> int:
    from moe_megatron.cli.report import report

    return report(words)


def _data(words: Sequence[str]) -> int:
    from moe_megatron.cli.data import data

    return data(words)


def _convert(words: Sequence[str]) -> int:
    from moe_megatron.cli.convert import convert

    return convert(words)


def _verify(words: Sequence[str]) -> int:
    from moe_megatron.cli.verify import verify

    return verify(words)


def _inspect(words: Sequence[str]) -> int:
    from moe_megatron.cli.inspect import inspect

    return inspect(words)


def _monitor(words: Sequence[str]) -> int:
    from moe_megatron.cli.monitor import monitor

    return monitor(words)


def _grafana(words: Sequence[str]) -> int:
    from moe_megatron.cli.grafana import grafana

    return grafana(words)


def _doctor(words: Sequence[str]) -> int:
    from moe_megatron.cli.doctor import doctor

    return doctor(words)


if __name__ == "__main__":
    sys.exit(main())
