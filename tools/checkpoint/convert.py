"""Convert a checkpoint: `moe-megatron convert`."""

import sys
from os.path import abspath, dirname

# Python puts this folder first on sys.path, where inspect.py would hide the standard library's.
sys.path[:] = [entry for entry in sys.path if abspath(entry) != dirname(abspath(__file__))]

from moe_megatron.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
