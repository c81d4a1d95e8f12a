"""What people do wrong, from Python and on the command line, and what they are told.

Every mistake is answered by one paragraph that says what was given, what was needed or what to do,
without a traceback and before anything slow begins. Mistakes with data are in
`data/objects/test_reading.py`, with routers of one's own in `test_router_mistakes.py`, with folders
of models in `checkpoint/test_mutations.py`, and in running programs in
`tests/functional/test_failures.py`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_megatron import MoEModel, MoETrainer, compare, models
from moe_megatron.analytics import RouterAnalyzer, RouterMonitor
from moe_megatron.distributed import DistributedMoETrainer
from moe_megatron.errors import ConfigError, MoEError
from moe_megatron.routing import ExpertChoice, LoadBalancer, TopKRouter
from moe_megatron.text.training import train_tokenizer
from tests.unit.mistakes import assert_answered_in_python, assert_answered_on_the_command_line

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}." for i in range(10)]
IDS = torch.zeros(1, 4, dtype=torch.int64)


def model(**options: Any) -> MoEModel:
    shape = {"hidden_size": 32, "num_experts": 4, "num_layers": 1, "num_attention_heads": 4}
    return MoEModel(**{**shape, "vocab_size": 280, "expert_hidden_size": 16, **options})


def trainer(given: Any = None, **options: Any) -> MoETrainer:
    return MoETrainer(model() if given is None else given, **{"tokenizer": "tokenizer", **options})


def reader() -> MoEModel:
    """A model that can read text."""
    it = model()
    it.tokenizer = "tokenizer"
    return it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where people have what they give by mistake."""
    place = tmp_path_factory.mktemp("mistakes")
    train_tokenizer(TEXTS, place / "tokenizer", vocab_size=280)
    for name in ("empty", "adapter", "quantized"):
        (place / name).mkdir()
    (place / "adapter" / "adapter_config.json").write_text("{}")
    (place / "quantized" / "model.Q4_K.gguf").write_bytes(b"GGUF")
    (place / "book.txt").write_text("Once upon a time.\n")
    model().save_pretrained(place / "saved")
    for name, text in CONFIGURATIONS.items():
        (place / name).write_text(text)
    (place / "utf16.yaml").write_text("model: {}", encoding="utf-16")
    return place


@pytest.fixture(autouse=True)
def there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


# --- from Python ---------------------------------------------------------------------------------

Mistake = Callable[[], Any]

IN_PYTHON: dict[str, tuple[Mistake, str]] = {
    # a model
    "name for a model": (
        lambda: MoETrainer("olmoe"),
        r"MoETrainer needs a MoEModel, not the text 'olmoe'; load it with MoEModel.from_pretrained",
    ),
    "class for a model": (lambda: trainer(MoEModel), r"not the class MoEModel; build one"),
    "another library's model": (
        lambda: trainer(torch.nn.Linear(2, 2)),
        r"not Linear; MoEModel.from_pretrained\(...\) reads",
    ),
    "name for a distributed model": (
        lambda: DistributedMoETrainer("olmoe", world_size=2),
        "DistributedMoETrainer needs a MoEModel",
    ),
    "name for a watched model": (lambda: RouterMonitor("olmoe"), "a model is needed, not 'olmoe'"),
    "nothing for a model": (lambda: MoETrainer(), "missing a required argument: 'model'. It takes"),
    "class for an analysed model": (lambda: RouterAnalyzer(MoEModel), "a model is needed, not <cl"),
    "text for a size": (lambda: model(hidden_size="32"), r"needs a whole number, not '32' \(text"),
    "part of a layer": (lambda: model(num_layers=1.5), r"num_layers needs a whole number, not 1.5"),
    "yes for a number": (lambda: model(num_layers=True), "num_layers needs a whole number"),
    "width that heads do not divide": (
        lambda: model(hidden_size=33),
        r"hidden_size \(33\) must be a multiple of model.num_attention_heads \(4\)",
    ),
    "more experts a token than there are": (
        lambda: model(experts_per_token=9),
        r"top_k \(9\) must not exceed moe.num_experts \(4\)",
    ),
    "misspelt router": (lambda: model(router_type="topk"), r"Did you mean 'top_k'\?"),
    "misspelt option": (
        lambda: model(num_expert=8),
        r"no option 'num_expert'. Did you mean 'num_e",
    ),
    "misspelt balancing": (lambda: LoadBalancer("swich"), r"Did you mean 'switch'\?"),
    "number for balancing": (lambda: LoadBalancer(0.01), r"by name, or several .* not 0.01"),
    "another library's balancing option": (
        lambda: LoadBalancer(coef=0.1),
        r"LoadBalancer\(...\) has no argument 'coef'. It takes method, aux_loss_coef",
    ),
    "two routers that balance": (
        lambda: LoadBalancer(("loss_free", "sinkhorn")),
        "'loss_free' and 'sinkhorn' do not work together: both decide the router",
    ),
    "two losses that balance": (
        lambda: LoadBalancer(("auxiliary_loss", "global_auxiliary_loss")),
        "do not work together: both decide moe.load_balancing",
    ),
    "weight of no loss": (
        lambda: LoadBalancer("base_layers", aux_loss_coef=0.1),
        r"aux_loss_coef \(0.1\) has no effect with the balancing method 'base_layers'",
    ),
    "capacity without dropping": (
        lambda: LoadBalancer(capacity_factor=1.0, drop_tokens=False),
        r"drop_tokens=False does not work with capacity_factor \(1.0\)",
    ),
    "dropping without capacity": (
        lambda: LoadBalancer(drop_tokens=True),
        "drop_tokens=True needs a capacity_factor",
    ),
    "policy without capacity": (
        lambda: LoadBalancer(drop_policy="position"),
        r"drop_policy \('position'\) has no effect without a capacity",
    ),
    "padding without capacity": (
        lambda: LoadBalancer("switch", drop_tokens=False, pad_to_capacity=True),
        r"pad_to_capacity \(True\) has no effect without a capacity",
    ),
    "two experts of Switch": (
        lambda: LoadBalancer("switch", routing_top_k=2),
        r"routing_top_k \(2\) does not work with the balancing method 'switch'",
    ),
    "Switch on a model of two experts": (
        lambda: trainer(load_balancing="switch"),
        r"needs the router 'top_k' with \{'pre_softmax': True\}, .* load_balancer='switch'\)",
    ),
    "threshold of no second expert": (
        lambda: model(load_balancer=LoadBalancer(second_expert_threshold=0.2)),
        "is an option of the router 'gshard', and the router here is 'top_k'",
    ),
    "bias beside a balancing router": (
        lambda: model(load_balancer="sinkhorn", expert_bias=True),
        r"the router 'sinkhorn' does not work with moe.expert_bias \(True\)",
    ),
    "two sources of a router": (
        lambda: model(load_balancer="loss_free", router_type="cosine"),
        "load_balancer 'loss_free' routes with 'loss_free', not with router_type 'cosine'",
    ),
    "two values of a capacity": (
        lambda: model(load_balancer=LoadBalancer(capacity_factor=1.0), capacity_factor=2.0),
        r"capacity_factor \(2.0\) contradicts load_balancer 'auxiliary_loss'",
    ),
    "two weights of a loss": (
        lambda: trainer(load_balancing=LoadBalancer(aux_loss_coef=0.1), aux_loss_coef=0.2),
        "aux_loss_coef is given twice, as 0.2 to the trainer and as 0.1 to its LoadBalancer",
    ),
    "one token for a router": (
        lambda: TopKRouter(8, 4)(torch.zeros(8)),
        r"hidden_states \(torch.float32 \[8\]\) must be floating-point numbers of the shape",
    ),
    "another width for a router": (
        lambda: ExpertChoice(8, 4)(torch.zeros(2, 5)),
        r"have 5 features, and this router was made for hidden_size 8",
    ),
    "another mask for a router": (
        lambda: TopKRouter(8, 4)(torch.zeros(2, 3, 8), attention_mask=torch.ones(2, 4)),
        r"attention_mask \[2, 4\] must have the shape \[2, 3\]",
    ),
    "negative capacity": (
        lambda: ExpertChoice(8, 4)(torch.zeros(2, 8), capacity_factor=-1),
        r"capacity_factor \(-1\) must be a number, greater than 0",
    ),
    "another library's option": (lambda: model(dtype="bf16"), r"overrides=\{'training.precision'"),
    "sizes in a row": (lambda: MoEModel(32, 4, 2, 1, "top_k", 8), "too many positional arguments"),
    "device of a model": (lambda: model(device="cuda"), r"model.to\(...\) moves a model"),
    "misspelt device": (lambda: model().to("gpu"), "there is no device 'gpu'; give 'cpu', 'cuda'"),
    "text for a precision": (lambda: model().to("bf16"), "as torch.bfloat16, not as 'bf16'"),
    "whole numbers for weights": (lambda: model().to(torch.int64), "weights cannot be torch.int64"),
    "whole numbers for saved weights": (
        lambda: MoEModel.from_pretrained("saved", dtype=torch.int8),
        "weights cannot be torch.int8; give torch.float32",
    ),
    "device of another library": (lambda: model().to("mps"), "nothing here computes on device 'mp"),
    "text for a saved precision": (
        lambda: MoEModel.from_pretrained("saved", dtype="bf16"),
        "dtype must be a precision of torch, not 'bf16'; give torch.bfloat16",
    ),
    "text for a group of processes": (
        lambda: model().set_expert_parallel_group("all"),
        "a group of processes is needed, not 'all'",
    ),
    # a folder
    "no path": (lambda: MoEModel.from_pretrained(None), "a path is text or a pathlib.Path, not No"),
    "model for a path": (lambda: MoEModel.from_pretrained(model()), r"not MoEModel\( \(embed"),
    "saved to nowhere": (lambda: model().save_pretrained(), "missing a required argument: 'path'"),
    "number for a path": (lambda: trainer(run_dir=5), r"a path is text .*, not 5 \(int\)"),
    "folder that is not there": (
        lambda: MoEModel.from_pretrained("./nothere"),
        "neither a folder nor a Hub id",
    ),
    "file for a folder": (
        lambda: MoEModel.from_pretrained("book.txt"),
        "give the folder of a model, not a file",
    ),
    "adapter for a model": (
        lambda: MoEModel.from_pretrained("adapter"),
        r"an adapter \(LoRA\), which is nothing without its base model: merge both",
    ),
    "GGUF for a model": (lambda: MoEModel.from_pretrained("quantized"), "it holds a GGUF file"),
    "tokenizer for a model": (
        lambda: MoEModel.from_pretrained("tokenizer"),
        "it holds a tokenizer alone",
    ),
    "our model for a published one": (
        lambda: models.Mixtral.from_pretrained("saved"),
        "load it with MoEModel.from_pretrained",
    ),
    "file to save to": (lambda: model().save_pretrained("book.txt"), "Check that it is a folder"),
    "unknown format": (
        lambda: model().save_pretrained("new", format="gguf"),
        "cannot be saved as 'gguf'; use 'moe_megatron', 'hugging_face' or 'megatron'",
    ),
    # training
    "torch's name of an argument": (
        lambda: trainer().train(TEXTS, lr=1e-3),
        r"train\(...\) has no argument 'lr'. Did you mean 'learning_rate'\?",
    ),
    "Keras's name of an argument": (
        lambda: trainer().train(TEXTS, epochs=3),
        r"Did you mean 'num_epochs'\?",
    ),
    "device of a trainer": (
        lambda: trainer(device="cuda"),
        r"MoETrainer\(...\) has no argument 'device'. Training takes CUDA where torch finds it",
    ),
    "precision of a trainer": (
        lambda: trainer(overrides={"training.precision": "bfloat16"}),
        r"not 'bfloat16'. Did you mean 'bf16'\?",
    ),
    "text for a rate": (
        lambda: trainer().train(TEXTS, learning_rate="0.1"),
        r"learning_rate \('0.1'\) must be a number, greater than 0; try 0.001",
    ),
    "nan for a rate": (
        lambda: trainer().train(TEXTS, learning_rate=float("nan")),
        r"learning_rate \(nan\) must be a number",
    ),
    "text for a batch size": (
        lambda: trainer().train(TEXTS, batch_size="8"),
        r"batch_size \('8'\) must be a whole number",
    ),
    "text for a coefficient": (
        lambda: trainer(router_z_loss_coef="0.1"),
        r"router_z_loss_coef \('0.1'\) must be a number",
    ),
    "list of overrides": (
        lambda: trainer(overrides=["moe.top_k"]),
        "overrides must be a mapping of fields and values, not list",
    ),
    "misspelt section": (
        lambda: trainer(overrides={"chekpoint.save_interval": 5}),
        r"unknown key 'chekpoint'. Did you mean 'checkpoint'\?",
    ),
    "arguments in a row": (
        lambda: trainer().train(TEXTS, TEXTS, 8, 1e-3, 1, 5),
        r"train\(...\): too many positional arguments. It takes train_data, eval_dataset",
    ),
    "evaluation of nothing": (
        lambda: trainer().evaluate(),
        "missing a required argument: 'dataset'",
    ),
    "evaluation without text": (
        lambda: trainer().train(TEXTS, eval_interval=5),
        "eval_interval needs text to evaluate on",
    ),
    "run to continue": (
        lambda: trainer().train(TEXTS, resume="runs/trainer"),
        r"resume \('runs/trainer'\) must be True or False",
    ),
    "report before training": (lambda: trainer().visualize_routing(), r"call train\(...\) first"),
    "number for a tokenizer": (lambda: trainer(tokenizer=5).tokenizer, "cannot be a int"),
    # using
    "text for ids": (lambda: model().generate("hello", 4), "text goes to generate_text"),
    "list for ids": (lambda: model()([[1, 2]]), r"not list; make one with torch.tensor"),
    "array for ids": (lambda: model()(np.array([[1, 2]])), "not ndarray; make one with torch.tens"),
    "ids of one text": (
        lambda: model()(IDS[0]),
        r"add a missing batch axis with input_ids\[None\]",
    ),
    "ids of another tokenizer": (
        lambda: model()(IDS + 999),
        "hold 999, but this model has ids 0 to",
    ),
    "yes and no for ids": (lambda: model()(IDS > 0), "must be whole numbers .*, not torch.bool"),
    "batch of nothing": (lambda: model()(IDS[:0]), r"at least one token, .* of shape \[0, 4\]"),
    "list for a mask": (
        lambda: model()(IDS, attention_mask=[[1, 1, 1, 1]]),
        r"attention_mask must be a tensor of the shape of input_ids, \[1, 4\], not list",
    ),
    "list for labels": (lambda: model()(IDS, labels=[[1, 2, 3, 4]]), "labels must be a tensor of"),
    "fractions for labels": (
        lambda: model()(IDS, labels=IDS.float()),
        r"labels must be ids of tokens, not torch.float32; give labels.long\(\)",
    ),
    "labels of another tokenizer": (
        lambda: model()(IDS, labels=IDS + 999),
        "labels hold 999, but this model has ids 0 to 279; give input_ids themselves, and -100",
    ),
    "labels of another padding": (lambda: model()(IDS, labels=IDS - 1), "labels hold -1, but"),
    "generation without a limit": (
        lambda: model().generate(IDS),
        r"generate\(...\): missing a required argument: 'max_new_tokens'",
    ),
    "text for the last token": (
        lambda: model().generate(IDS, 4, eos_token_id="</s>"),
        r"eos_token_id \('</s>'\) must be a whole number",
    ),
    "labels of another length": (lambda: model()(IDS, labels=IDS[:, :2]), "pad both alike"),
    "text without a tokenizer": (
        lambda: model().generate_text("hello"),
        "this model has no tokenizer",
    ),
    "number for a prompt": (lambda: reader().generate_text(5), "a prompt is int, not text"),
    "nothing for a prompt": (lambda: reader().generate_text(["a", None]), "a prompt is NoneType"),
    "text for a number of tokens": (
        lambda: reader().generate_text("a", max_new_tokens="4"),
        r"max_new_tokens \('4'\) must be a whole number",
    ),
    "negative temperature": (
        lambda: reader().generate_text("a", temperature=-1),
        r"temperature \(-1\) must be a number, at least 0",
    ),
    "another library's limit": (
        lambda: reader().generate_text("a", max_length=9),
        r"Did you mean 'max_new_tokens'\?",
    ),
    "statistics of nothing": (
        lambda: RouterMonitor(model()).get_stats(),
        r"run the model inside `with monitor.track\(\):`",
    ),
    "routers of a dense model": (
        lambda: RouterMonitor(model(num_experts=None, expert_hidden_size=None)),
        "no router was found in MoEModel",
    ),
    "number for an analyser's tokenizer": (
        lambda: RouterAnalyzer(model(), tokenizer=5),
        "tokenizer must encode and decode text, not be 5; give model.tokenizer",
    ),
    "folder for an analyser's tokenizer": (
        lambda: RouterAnalyzer(model(), tokenizer="tokenizer"),
        "tokenizer must encode and decode text, not be 'tokenizer'",
    ),
    "no samples": (
        lambda: RouterAnalyzer(model()).compute_expert_specialization(None),
        "samples come from a list or a dataset, not from None",
    ),
    "text for a number of samples": (
        lambda: RouterAnalyzer(model()).compute_expert_specialization([], num_samples="5"),
        r"num_samples \('5'\) must be a whole number",
    ),
    "negative number of samples": (
        lambda: RouterAnalyzer(model()).compute_expert_specialization([], num_samples=-1),
        r"num_samples \(-1\) must be a whole number",
    ),
    "nothing to plot": (
        lambda: RouterAnalyzer(model()).plot_expert_token_affinity(None, "a.png"),
        "tokens are one text, or its ids as whole numbers, not None",
    ),
    "fractions to plot": (
        lambda: RouterAnalyzer(model()).plot_expert_token_affinity([1.5], "a.png"),
        r"not \[1.5\]; give a string or a list such as",
    ),
    "texts to plot": (
        lambda: RouterAnalyzer(reader()).plot_expert_token_affinity(["a", None], "a.png"),
        r"tokens are one text, .*, not \['a', None\]",
    ),
    "rows of several lengths to plot": (
        lambda: RouterAnalyzer(model()).plot_expert_token_affinity([[1], [2, 3]], "a.png"),
        "tokens are one text, or its ids",
    ),
    "folder for a picture": (
        lambda: RouterAnalyzer(model()).plot_expert_token_affinity([1, 2], "empty"),
        r"cannot be written to empty \('' is no kind of picture\); give a name that ends in .png",
    ),
    "file for the folder of a picture": (
        lambda: RouterAnalyzer(model()).plot_expert_token_affinity([1, 2], "book.txt/a.png"),
        "cannot write book.txt",
    ),
    "number for runs": (
        lambda: compare(5),
        r"several runs in a list, as in compare\(\[a, b\]\), n",
    ),
    "nothing for runs": (lambda: compare(None), "several runs in a list, .*, not None"),
    "nothing to analyse": (lambda: RouterAnalyzer(model()).analyze_batch(None), "not NoneType"),
}


@pytest.mark.parametrize("mistake", IN_PYTHON)
def test_mistake_in_python_is_answered_in_a_paragraph(mistake: str) -> None:
    make, expected = IN_PYTHON[mistake]
    assert_answered_in_python(make, expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    "move",
    [
        lambda: model().to("cuda"),
        lambda: model().to(device=torch.device("cuda:1")),
        lambda: model().cuda(),
        lambda: MoEModel.from_pretrained("saved", device="cuda"),
    ],
)
def test_device_that_is_not_there_is_refused_with_the_reason(move: Mistake) -> None:
    with pytest.raises(MoEError, match=r"asks for CUDA, but .*; .*, or stay with 'cpu'\."):
        move()


PUBLIC = (MoEModel, MoETrainer, DistributedMoETrainer, RouterMonitor, RouterAnalyzer, models.OLMoE)


@pytest.mark.parametrize("public", PUBLIC, ids=lambda it: it.__name__)
def test_unknown_argument_of_every_public_method_is_a_mistake_that_is_answered(
    public: type,
) -> None:
    """A `TypeError` of Python's knows no other name."""
    tried = 0
    for owner in public.__mro__:
        if not owner.__module__.startswith("moe_megatron.") or owner.__name__ == "LanguageModel":
            continue
        for name, member in vars(owner).items():
            function = member.__func__ if isinstance(member, classmethod) else member
            if not inspect.isfunction(function) or name.startswith("_") or name == "to":
                continue
            with pytest.raises(ConfigError, match=rf"{name}\(...\) has no argument 'no_such'"):
                function(public, no_such=1)
            tried += 1
    assert tried
    if public is not models.OLMoE:  # it is not built, but loaded
        with pytest.raises(ConfigError, match=r"has no (argument|option) 'no_such'"):
            public(*([] if public is MoEModel else [model()]), no_such=1)


# --- on the command line -------------------------------------------------------------------------

CONFIGURATIONS = {
    "tab.yaml": "model:\n\tnum_layers: 2\n",
    "twice.yaml": "model:\n  num_layers: 2\n  num_layers: 3\n",
    "unknown.yaml": "model:\n  n_layers: 2\n",
    "section.yaml": "modle:\n  num_layers: 2\n",
    "word.yaml": "training:\n  learning_rate: fast\n",
    "list.yaml": "- model\n",
    "scalar.yaml": "model: 5\n",
}
TINY = "train --config test_tiny --mock-data"

ON_THE_COMMAND_LINE = {
    "trian": r"no verb 'trian'. Did you mean 'train'\?",
    "--config demo_moe": "no verb '--config'. Verbs are: ",
    "train --config demo_mo": r"neither a file nor a preset. Did you mean 'demo_moe'\?",
    "train --config=": "'' is neither a file nor a preset",
    "train --config empty": "'empty' cannot be read: Is a directory",
    "train --config tab.yaml": r"line 2 is not valid YAML: found character '\\t'",
    "train --config twice.yaml": "line 3 repeats the key 'num_layers'; keep one",
    "train --config unknown.yaml": r"unknown key 'n_layers' .* Did you mean 'num_layers'\?",
    "train --config section.yaml": r"unknown key 'modle'. Did you mean 'model'\?",
    "train --config word.yaml": r"learning_rate needs a number, not 'fast' \(text\)",
    "train --config list.yaml": "needs a mapping of sections",
    "train --config scalar.yaml": "section 'model' needs a mapping of fields, not 5",
    "train --config utf16.yaml": "is not UTF-8 text; save it as UTF-8",
    "train --set moe.top_k": "needs the form section.field=value",
    "train --set top_k=2": "unknown key 'top_k'. It belongs to section 'moe'",
    "train --set moe.top_k=two": r"top_k needs a whole number, not 'two' \(text\)",
    "train --train-iters five": r"train_steps needs a whole number, not 'five' \(text\)",
    "train --train-iters": "--train-iters needs a value",
    "train -train-iters 5": "is not a flag; give flags as in '--num-layers 6'",
    "train --tran-iters 5": r"Megatron has no flag --tran-iters. Did you mean --train-iters\?",
    "train --learning-rate 0.1": r"no flag --learning-rate. Did you mean --lr\?",
    "train --epochs 3": r"no flag --epochs. Did you mean --train-iters\?",
    "train --num-processes two": r"argument --num-processes: invalid int value: 'two'. `moe-mega",
    "train --num-processes 0": r"num_processes \(0\) must be at least 1",
    "train --resume empty": "holds no run to resume",
    "train --resume empty --load x": "contradict each other",
    f"{TINY} --num-processes 2 --tensor-model-parallel-size 3": (
        r"world size \(2\) is not divisible by tensor_parallel_size \(3\)"
    ),
    f"{TINY} --num-processes 3 --expert-model-parallel-size 3": (
        r"expert_parallel_size \(3\) must divide num_experts \(4\); try 1, 2 or 4"
    ),
    f"{TINY} --seq-length 0": "sequence_length must be at least 1, not 0",
    f"{TINY} --moe-router-topk 99": r"top_k \(99\) must not exceed moe.num_experts \(4\)",
    f"{TINY} --num-processes 1 --load nothere": "nothere holds no complete checkpoint",
    "train --config test_tiny --num-processes 1 --data-path nothere": "data file nothere does not",
    "report": "the following arguments are required: RUN_DIR. `moe-megatron report --help` shows",
    "report empty": "a report needs it; give the directory of a run",
    "inspect book.txt": "give the folder of a checkpoint",
    "convert": "the following arguments are required: source, destination",
    "convert saved new": "a model that MoEModel.save_pretrained has written in its own format",
    "convert saved new --overwite": r"unrecognized arguments: --overwite. Did you mean '--overwrit",
    "verify empty": "holds no finished Megatron checkpoint",
    "data prepar": r"invalid choice: 'prepar' .* Did you mean 'prepare'\?",
    "data prepare book.txt": "the following arguments are required: --output",
    "uptime empty": "tells of no attempt to train",
    "slurm": "Actions are: render, submit, status and logs",
    "slurm submitt": r"no action 'submitt'. Did you mean 'submit'\?",
    "slurm render --nodes 1 --gpus-per-node 1 --config=": "'' is neither a file nor a preset",
    "slurm render --nodes 1 --gpus-per-node 0": "1 node and 1 process on each, not 1 and 0",
    "convert saved new --upcycle 4 --top-k 0": "top_k must be at least 2",
    "chaos --hits 0": "--hits and --steps must be at least 1",
    "grafana": "the following arguments are required: ACTION",
}


@pytest.mark.parametrize("words", ON_THE_COMMAND_LINE)
def test_mistake_on_the_command_line_is_answered_in_a_paragraph(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_answered_on_the_command_line(words, ON_THE_COMMAND_LINE[words], capsys)
