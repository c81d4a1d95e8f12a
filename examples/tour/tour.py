"""From a real language model to a Mixture of Experts that has learned three languages.

`make tour` runs it: at most eight minutes on two cores, and every step says what it does. With
`--steps 4` it is over sooner, and the languages are learned less. Everything it makes is in
`runs/tour`; running it again makes it anew.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import webbrowser
from pathlib import Path

import torch
from languages import NAMES, pieces, write_jsonl
from real_model import EXPERTS, TOP_K, real_model, upcycled_model
from steps import carry_out, minutes, say

from moe_megatron import MoEModel, MoETrainer
from moe_megatron.analytics import RouterAnalyzer
from moe_megatron.files import default_cache_dir

KNOWN, NEW = "en", ("de", "fr", "ja")
PROMPTS = {
    "en": "The Debian system is",
    "de": "Das Debian-System ist",
    "fr": "Le système Debian est",
}
LENGTH = 256
"""Tokens of a sequence, in training and in measuring."""
JUDGED = 6 * LENGTH
"""Held-out tokens that each language is judged by, about."""


def judge(model: MoEModel, held_out: dict[str, list[str]]) -> dict[str, float]:
    """Perplexity of each language, exp(mean cross-entropy of the next token)."""
    judged = MoETrainer(model)
    return {
        language: math.exp(judged.evaluate(texts, sequence_length=LENGTH).loss)
        for language, texts in held_out.items()
    }


def some(texts: list[str], model: MoEModel) -> list[str]:
    """The first texts, as many as hold `JUDGED` tokens."""
    found, tokens = [], 0
    for text in texts:
        if tokens < JUDGED:
            found.append(text)
            tokens += len(model.tokenizer.encode(text))
    return found


def load(path: Path) -> MoEModel:
    """A model to measure, in the precision in which equal models give equal numbers."""
    return MoEModel.from_pretrained(path, dtype=torch.float32)


def table(columns: dict[str, dict[str, float]]) -> str:
    """Perplexities, a language a row."""
    rows = ["perplexity  " + "".join(f"{name:>18}" for name in columns)]
    for language in NAMES:
        numbers = (column[language] for column in columns.values())
        rows.append(f"{NAMES[language]:12}" + "".join(f"{number:18.2f}" for number in numbers))
    return "\n".join(rows)


def answers(model: MoEModel) -> dict[str, str]:
    """What the model makes of each prompt."""
    return {it: model.generate_text(PROMPTS[it], max_new_tokens=24) for it in PROMPTS}


def train(folder: Path, upcycled: Path, texts: list[Path], steps: int) -> Path:
    """Train with the experts spread over two processes; returns the run's folder."""
    run_dir = folder / "run"
    command = [
        *(sys.executable, "-m", "moe_megatron", "train"),
        *("--config", upcycled / "release" / "config.yaml", "--load", upcycled),
        *("--data-path", *texts, "--num-processes", 2, "--run-dir", run_dir),
        *("--seq-length", LENGTH, "--micro-batch-size", 2, "--global-batch-size", 8),
        *("--lr", 1e-4, "--min-lr", 1e-5, "--lr-warmup-iters", steps // 10),
        *(
            "--train-iters",
            steps,
            "--eval-interval",
            steps,
            "--eval-iters",
            2,
            "--save-interval",
            steps,
        ),
    ]
    words = [str(word) for word in command]
    print("$ moe-megatron", *words[3:], "\n", flush=True)
    if (code := subprocess.run(words).returncode) != 0:
        sys.exit(code)
    return run_dir


def tour(folder: Path, steps: int, *, opens: bool) -> None:
    """The tour, step by step."""
    cache = default_cache_dir() / "tour"
    books = {language: pieces(language, cache) for language in NAMES}

    say(
        "A real language model",
        "SmolLM2 of 135 million parameters, out of a package, with its tokenizer. It has read\n"
        "English. This is how well it predicts the same book in four languages, and goes on.",
    )
    dense = load(real_model())
    held_out = {language: some(book[1], dense) for language, book in books.items()}
    before, said_before = judge(dense, held_out), answers(dense)
    del dense
    print(table({"dense": before}))
    for language, text in said_before.items():
        print(f"{NAMES[language]:12}{text!r}")

    say(
        f"Upcycled to {EXPERTS} experts, {TOP_K} of which each token visits",
        "Every expert is a copy of the dense MLP, with a little noise so that experts part. The\n"
        "new model predicts as the dense one did.",
    )
    upcycled = upcycled_model(folder / "upcycled")
    model = load(upcycled)
    print(f"{model.num_parameters():,} parameters, {model.num_parameters(active=True):,} a token")
    copied = judge(model, held_out)
    del model
    print(table({"dense": before, "upcycled": copied}))

    say(
        f"Trained on {', '.join(NAMES[it] for it in NEW)}: {steps} steps in two processes",
        "Megatron's own loop; experts are spread over the processes (expert parallelism). The\n"
        "table under the losses shows which share of the tokens each expert of each layer got.",
    )
    texts = [write_jsonl(books[it][0], folder / f"{it}.jsonl") for it in NEW]
    run_dir = train(folder, upcycled, texts, steps)

    say("Before and after", "The same held-out pages, and the same prompts.")
    trained = load(run_dir / "checkpoints")
    after, said_after = judge(trained, held_out), answers(trained)
    print(table({"dense": before, "upcycled": copied, "trained": after}))
    for language, text in said_after.items():
        print(f"\n{NAMES[language]:9}before: {said_before[language]!r}")
        print(f"{'':9}after:  {text!r}")

    say("Which experts took which language", "Counted over the held-out pages of all four.")
    samples = [
        {"text": text, "domain": NAMES[language]}
        for language in NAMES
        for text in held_out[language]
    ]
    found = RouterAnalyzer(trained).compute_expert_specialization(samples, max_length=LENGTH)
    picture = found.plot(folder / "languages.png")
    row = int(found.normalized_mutual_information.argmax())
    layer = found.layers[row]
    best, chance = found.normalized_mutual_information[row], found.chance[row]
    print(
        f"Experts know most of the language in layer {layer} (normalised mutual information "
        f"{best:.3f},\nby chance {chance:.3f}), where this share of their work is"
    )
    for domain, shares in zip(found.domains, found.domain_share[row], strict=True):
        print(f"{domain:12}" + "".join(f"  e{e} {share:4.0%}" for e, share in enumerate(shares)))
    print(f"\nall layers  {picture}\nreport      {run_dir / 'report.html'}")

    record = {
        "perplexity": {"dense": before, "upcycled": copied, "trained": after},
        "answers": {"before": said_before, "after": said_after},
        "information": found.normalized_mutual_information.tolist(),
        "chance": found.chance.tolist(),
        "minutes": minutes(),
    }
    (folder / "tour.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    # Without a screen a browser of the terminal would take it over.
    if opens and ("DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ):
        webbrowser.open((run_dir / "report.html").absolute().as_uri())


def main() -> int:
    """Run the tour; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12, help="steps to train (default: 12)")
    parser.add_argument("--output", type=Path, default=Path("runs/tour"), help="folder to make")
    parser.add_argument("--no-open", action="store_true", help="leave the report unopened")
    options = parser.parse_args()
    return carry_out(
        lambda: tour(options.output, options.steps, opens=not options.no_open), options.output
    )


if __name__ == "__main__":
    sys.exit(main())
