"""Check that a conversion produced the same model: `moe-megatron verify`."""

import sys
from os.path import abspath, dirname

# Python puts this folder first on sys.path, where inspect.py would hide the standard library's.
sys.path[:] = [entry for entry in sys.path if abspath(entry) != dirname(abspath(__file__))]

from moe_megatron.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
