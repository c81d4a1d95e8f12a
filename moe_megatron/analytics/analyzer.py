"""`RouterAnalyzer`: runs a model on given text and finds out which experts serve what.

It feeds the model and passes the routers' decisions to `decisions`, `specialization` and
`drawing.affinity`. Afterwards the model is in the same mode as before, and its gradients are
unchanged. It does not train.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from moe_megatron.analytics.decisions import BatchAnalysis
from moe_megatron.analytics.gate_plane import GatePlane, find_gate_plane
from moe_megatron.analytics.routers import Decision, RouterHooks
from moe_megatron.analytics.specialization import Specialization, SpecializationCounter
from moe_megatron.analytics.token_pairs import token_text
from moe_megatron.analytics.token_paths import TokenPaths
from moe_megatron.config.arguments import explained, shown, whole
from moe_megatron.drawing.affinity import plot_affinity
from moe_megatron.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    type Tokens = Tensor | npt.NDArray[np.int64] | Sequence[int]


@explained
class RouterAnalyzer:
    """Analyzes the routers of a model.

    Args:
        model: a `MoEModel`, or a transformers model with routers; see `routers`.
        tokenizer: a tokenizer of transformers or of ours; None takes the model's own.

    Raises:
        ConfigError: no router is found in the model, or the tokenizer is none.
    """

    def __init__(self, model: "nn.Module", tokenizer: Any = None) -> None:
        self._model = model
        if tokenizer is not None and (
            isinstance(tokenizer, str) or not hasattr(tokenizer, "decode")
        ):
            raise ConfigError(
                f"tokenizer must encode and decode text, not be {shown(tokenizer)}; give "
                "model.tokenizer or trainer.tokenizer, or one of transformers."
            )
        self._tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
        self._hooks = RouterHooks(model)

    @property
    def layers(self) -> tuple[int, ...]:
        """Global 1-based numbers of the layers that have a router."""
        return self._hooks.shape.layers

    def analyze_batch(
        self,
        inputs: "str | Sequence[str] | Tensor | Mapping[str, Tensor]",
        return_attention_maps: bool = False,
    ) -> BatchAnalysis:
        """Runs the model once, in evaluation mode, and returns every routing decision.

        Args:
            inputs: a text, a list of texts, int64 [batch, seq] token ids, or a mapping with
                "input_ids" and optionally "attention_mask".
            return_attention_maps: also return how much each token attends to each other token.

        Raises:
            DataError: the ids do not fit the model, or a text is empty.
            ConfigError: text is given but there is no tokenizer.
        """
        named = self._named(inputs)
        ordered, maps = self._decisions(named, with_attention=return_attention_maps)
        return BatchAnalysis(
            input_ids=_fetch(named["input_ids"]),
            layers=self.layers,
            indices=np.stack([_fetch(decision.indices) for decision in ordered]),
            scores=np.stack([_fetch(decision.scores) for decision in ordered]),
            attention_maps=maps,
        )

    def token_paths(self, text: str, *, most_tokens: int = 1024) -> TokenPaths:
        """Runs the model on one text, and returns the experts of each token in every layer.

        Args:
            text: a text.
            most_tokens: largest number of tokens that it may have.

        Raises:
            DataError: the text has no token or too many, or does not fit the model.
            ConfigError: there is no tokenizer.
        """
        ids = self._encode(text)
        if not len(ids):
            raise DataError("there are no tokens to follow; give text that is not empty.")
        if len(ids) > most_tokens:
            raise DataError(
                f"this text has {len(ids):,} tokens, and at most {most_tokens:,} are followed; "
                "give a shorter one."
            )
        decisions, _ = self._decisions(self._pad([ids]))
        assert self._tokenizer is not None  # it has encoded the text
        return TokenPaths.of([self._tokenizer.decode([it]) for it in ids.tolist()], decisions)

    def compute_expert_specialization(
        self,
        dataset: Iterable[Mapping[str, Any]],
        num_samples: int = 1000,
        *,
        max_length: int = 256,
        batch_size: int = 8,
    ) -> Specialization:
        """Measures which experts serve which domains and tokens.

        Args:
            dataset: samples with a "domain" and either "input_ids" or "text".
                From a list longer than `num_samples`, evenly spaced samples are taken; from any
                other iterable, the first ones.
            num_samples: largest number of samples to use.
            max_length: largest number of tokens to use from a sample.
            batch_size: samples to run at a time.

        Raises:
            DataError: a sample lacks a field, or there are fewer than two domains.
            ConfigError: samples are text but there is no tokenizer, or a number is none.
        """
        num_samples = whole("num_samples", num_samples)
        max_length = whole("max_length", max_length)
        batch_size = whole("batch_size", batch_size)
        if not isinstance(dataset, Iterable):
            raise DataError(
                f"samples come from a list or a dataset, not from {shown(dataset)}; each is a "
                'mapping with a "domain" and a "text".'
            )
        counter = SpecializationCounter()
        samples = iter(_choose(dataset, num_samples))
        while batch := list(islice(samples, batch_size)):
            rows = [self._read_sample(sample, max_length) for sample in batch]
            rows = [(ids, domain) for ids, domain in rows if len(ids)]
            if rows:
                analysis = self.analyze_batch(self._pad([ids for ids, _ in rows]))
                counter.add(analysis, [domain for _, domain in rows])
        return counter.finish()

    def plot_expert_token_affinity(
        self, tokens: "str | Tokens", save_to: str | Path, *, columns: Literal[1, 2] = 2
    ) -> Path:
        """Plots the routers' scores for each token of one text.

        Args:
            tokens: text, or the ids of one sequence.
            save_to: file to write, a .png, .svg or .pdf.
            columns: of a page that the figure spans, 1 or 2.

        Returns:
            The file.

        Raises:
            DataError: there are no tokens, or the file cannot be written.
            ConfigError: text is given but there is no tokenizer.
        """
        ids = self._encode(tokens) if isinstance(tokens, str) else _as_ids(tokens)
        if not len(ids):
            raise DataError("there are no tokens to plot; give non-empty text or token ids")
        analysis = self.analyze_batch(self._pad([ids]))
        labels = [token_text(self._tokenizer, token) for token in ids.tolist()]
        scores, indices = analysis.scores[:, 0], analysis.indices[:, 0]
        picture = plot_affinity(scores, indices, self.layers, labels, columns)
        return picture.save(save_to)

    def gate_plane(
        self, inputs: "str | Sequence[str] | Tensor | Mapping[str, Tensor]", layer: int
    ) -> GatePlane:
        """What the gate of a layer sees of a batch, as a plane with the gate's first choices.

        Args:
            inputs: as of `analyze_batch`; at most some thousand tokens.
            layer: global layer number.

        Raises:
            DataError: the inputs span no plane, do not fit the model, or a text is empty.
            ConfigError: the layer has no router, or text is given but there is no tokenizer.
        """
        named = self._named(inputs)
        router, logits = self._hooks.gate(layer)
        seen: list[Tensor] = []
        handle = router.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        try:
            with _evaluating(self._model):
                self._model(**named)
        finally:
            handle.remove()
        hidden = seen[-1].reshape(-1, seen[-1].shape[-1])
        mask = named.get("attention_mask")
        if mask is not None and len(hidden) == mask.numel():
            hidden = hidden[mask.reshape(-1).bool()]

        def gate(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return _fetch(logits(hidden.new_tensor(points)).float()).astype(np.float64)

        with _evaluating(self._model):
            return find_gate_plane(_fetch(hidden.float()).astype(np.float64), gate)

    def _decisions(
        self, named: "Mapping[str, Tensor]", *, with_attention: bool = False
    ) -> tuple[list[Decision], tuple[npt.NDArray[np.float32], ...] | None]:
        """Runs the model once; the decision of each layer, and the attention maps if asked for."""
        decisions: dict[int, Decision] = {}

        def record(decision: Decision) -> None:
            decisions[decision.layer] = decision

        maps: tuple[npt.NDArray[np.float32], ...] | None = None
        with _evaluating(self._model), self._hooks.listening(record):
            if with_attention:
                maps = _run_with_attention(self._model, named)
            else:
                self._model(**named)
        return [decisions[layer] for layer in self.layers], maps

    def _named(self, inputs: Any) -> "dict[str, Tensor]":
        if isinstance(inputs, Mapping):
            return dict(inputs)
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
            return {"input_ids": inputs}
        rows = [self._encode(text) for text in texts]
        if not all(map(len, rows)) or not rows:
            raise DataError("there are no tokens to analyze; give text that is not empty")
        return self._pad(rows)

    def _read_sample(
        self, sample: Mapping[str, Any], max_length: int
    ) -> tuple[npt.NDArray[np.int64], str]:
        if not isinstance(sample, Mapping):
            raise DataError(
                f"a sample is {type(sample).__name__}, and must be a mapping with a domain and a "
                'text; of a DataFrame, give df.to_dict("records").'
            )
        if "domain" not in sample or not ("input_ids" in sample or "text" in sample):
            raise DataError(
                'a sample needs "domain" and either "input_ids" or "text"; got a sample with '
                f"{', '.join(map(str, sample)) or 'nothing'}"
            )
        ids = sample.get("input_ids")
        ids = self._encode(sample["text"]) if ids is None else _as_ids(ids)
        return ids[:max_length], str(sample["domain"])

    def _encode(self, text: str) -> npt.NDArray[np.int64]:
        if self._tokenizer is None:
            raise ConfigError(
                "text needs a tokenizer; give RouterAnalyzer one, set model.tokenizer, or pass "
                "token ids instead"
            )
        return np.asarray(self._tokenizer.encode(text), dtype=np.int64)

    def _pad(self, rows: Sequence[npt.NDArray[np.int64]]) -> "dict[str, Tensor]":
        """Makes one batch on the model's device of rows of different lengths, padded right."""
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = row, 1
        # Makes tensors on the model's device without importing torch; `long`, as floats would
        # round ids above 2^24.
        like = next(self._model.parameters()).detach().new_zeros(()).long()
        return {"input_ids": like.new_tensor(ids), "attention_mask": like.new_tensor(mask)}


def _choose(dataset: Iterable[Mapping[str, Any]], num_samples: int) -> Iterable[Mapping[str, Any]]:
    if isinstance(dataset, Sequence) and len(dataset) > num_samples:
        places = np.linspace(0, len(dataset) - 1, num_samples).round().astype(int)
        return [dataset[place] for place in places.tolist()]
    return islice(dataset, num_samples)


@contextmanager
def _evaluating(model: "nn.Module") -> Iterator[None]:
    """Evaluation mode without gradients inside the block; restores everything afterwards."""
    modes = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)  # so that no graph is kept, which costs most memory
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes.items():
            module.training = training


def _run_with_attention(
    model: Any, inputs: "Mapping[str, Tensor]"
) -> tuple[npt.NDArray[np.float32], ...]:
    """Runs the model and returns the attention of each layer, [batch, heads, seq, seq]."""
    if hasattr(model, "set_attn_implementation"):
        fused = model.config._attn_implementation
        model.set_attn_implementation("eager")  # fused ones never hold the weights in memory
        try:
            output = model(**inputs, output_attentions=True, use_cache=False)
        finally:
            model.set_attn_implementation(fused)
        return tuple(_fetch(weights.float()) for weights in output.attentions)
    found: dict[int, Any] = {}

    def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
        found[module.layer] = _fetch(module.attention_weights(*args[:3]).float())

    attentions = [m for m in model.modules() if hasattr(m, "attention_weights")]
    handles = [module.register_forward_hook(hook) for module in attentions]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found[layer] for layer in sorted(found))


def _as_ids(tokens: Any) -> npt.NDArray[np.int64]:
    ids = None
    with suppress(ValueError):  # rows of different lengths
        ids = _fetch(tokens) if hasattr(tokens, "cpu") else np.asarray(tokens)
    if ids is None or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise DataError(
            f"tokens are one text, or its ids as whole numbers, not {shown(tokens)}; give a string "
            "or a list such as [12, 7, 30]."
        )
    return ids.astype(np.int64).reshape(-1)


def _fetch(tensor: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return values
