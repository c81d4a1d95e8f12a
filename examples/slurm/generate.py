"""Continue prompts with a trained model: one JSON object a line, of prompt and continuation.

    python examples/slurm/generate.py exported/demo_moe prompts.txt

The model folder is one that `moe-megatron convert` or `MoETrainer.save_model` writes. It needs one
process, and a GPU if there is one.
"""

import argparse
import json
from pathlib import Path

import torch

from moe_megatron import MoEModel


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("prompts", type=Path, help="text file with a prompt on each line")
    parser.add_argument("--tokenizer", help="a folder or a hub id (default: the model's)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MoEModel.from_pretrained(options.model).to(device)
    if options.tokenizer:
        model.tokenizer = options.tokenizer
    for prompt in options.prompts.read_text(encoding="utf-8").splitlines():
        text = model.generate_text(prompt, options.max_new_tokens, options.temperature)
        answer = {"prompt": prompt, "continuation": text.removeprefix(prompt)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
