"""Text for longer runs than the demo corpus is made for: the source of the installed packages.

Divided into code and prose like the demo corpus, about 210 MB or 64 million tokens. The packages
are pinned, so that the same checkout gives the same text. Run it from the repository root:
`python -m benchmarks.packages_text FOLDER`, and then `moe-megatron data prepare FOLDER/code.jsonl
FOLDER/prose.jsonl --output FOLDER/packages --tokenizer demo`.
"""

import argparse
import sysconfig
from pathlib import Path

from moe_megatron.data.demo_corpus import write_demo_corpus


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    # Whatever is reached, all but tests is taken.
    for path in write_demo_corpus(
        folder, library=Path(sysconfig.get_path("purelib")), target_bytes=1
    ).values():
        print(path)


if __name__ == "__main__":
    main()
