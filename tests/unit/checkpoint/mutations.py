"""Model folders that somebody has broken: 250 and more, made from a few whole ones.

Each is a family, a kind of mutation and a number; the same three give the same folder. A mutation
changes a copy of a whole folder in place.
"""

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FAMILIES = ("mixtral", "qwen3_moe-dense-layers", "deepseek_v3", "gpt_oss", "llama-biases")
"""Examples of `tiny_models` that are broken."""
Mutation = Callable[[Path, random.Random], None]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LONG = "n" * 5000
_VALUES = (-1, 0, 1, 3, 2.5, 10**9, 10**30, "x", LONG, True, None, [], {}, [1], {"a": {}}, "nan")
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


# --- config.json ----------------------------------------------------------------------------


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / CONFIG).read_text()))


def _configure(folder: Path, config: object) -> None:
    (folder / CONFIG).write_text(json.dumps(config))


def config_value(folder: Path, rng: random.Random) -> None:
    """Another value, of any type."""
    config = _config(folder)
    key, value = rng.choice(sorted(config)), rng.choice(_VALUES)
    _configure(folder, config | {key: float("nan") if value == "nan" else value})


def config_number(folder: Path, rng: random.Random) -> None:
    """A number that is slightly off, or of another order."""
    config = _config(folder)
    keys = [key for key, value in sorted(config.items()) if type(value) in {int, float}]
    key = rng.choice(keys)
    change = rng.choice([lambda v: v + 1, lambda v: v * 2, lambda v: -v, lambda v: v * 1e12])
    _configure(folder, config | {key: change(config[key])})


def config_without(folder: Path, rng: random.Random) -> None:
    """A key is missing, or has another name."""
    config = _config(folder)
    key = rng.choice(sorted(config))
    value = config.pop(key)
    if rng.random() < 0.5:
        config[f"{key}_"] = value
    _configure(folder, config)


def config_switch(folder: Path, rng: random.Random) -> None:
    """A field that changes what is computed."""
    changes: tuple[dict[str, Any], ...] = (
        {"hidden_act": "gelu"},
        {"num_experts_per_tok": 1},
        {"attention_bias": "yes"},
        {"sliding_window": 4, "use_sliding_window": True},
        {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": -5.0}},
        {"is_encoder_decoder": True},
        {"use_alibi": True, "auto_map": {"AutoModel": "x.Y"}},
        {"scoring_func": "tanh"},
        {"dtype": "int3"},
        {"layer_types": ["chunked_attention"] * 3},
        {"quantization_config": {"quant_method": rng.choice(["awq", "gptq", "bitsandbytes"])}},
        {"model_type": rng.choice(["jamba", "mistral3", "t5", LONG, 7])},
    )
    _configure(folder, _config(folder) | rng.choice(changes))


def config_file(folder: Path, rng: random.Random) -> None:
    """No JSON, or none that is a configuration."""
    whole = (folder / CONFIG).read_bytes()
    contents = (
        *(b"", b"[]", b"null", b"{", b"\xef\xbb\xbf" + whole, b"\x1f\x8b" + whole, bytes(4096)),
        *(whole[: len(whole) // 2], whole.decode().encode("utf-16"), b"[" * 100_000, _POINTER),
        *(b'{"model_type": "mixtral"}', b'{"hidden_size": ' + b"9" * 5000 + b"}"),
    )
    (folder / CONFIG).write_bytes(rng.choice(contents))


# --- tensors ---------------------------------------------------------------------------------


def _header(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return dict(json.loads(data[8 : 8 + length])), data[8 + length :]


def _weights(folder: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensors(folder: Path, rng: random.Random) -> None:
    """A tensor is missing, renamed, another one's, of another type or shape, or one too many."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    name, other = rng.sample(sorted(weights), 2)
    value = weights.pop(name)
    change = rng.randrange(9)
    if change == 1:
        weights[f"{name}_"] = value
    elif change == 2:
        weights[name] = value[:-1].clone()
    elif change == 3:
        weights[name] = value.int()
    elif change == 4:
        weights[name] = value.bfloat16()
    elif change == 5:
        weights |= {name: value, f"model.layers.9.{other}": value.clone()}
    elif change == 6:
        weights |= {name: value, "lm_head.weight": weights["model.embed_tokens.weight"] * 2}
    elif change == 7:
        weights |= {
            name: value,
            "model.layers.0.self_attn.rotary_emb.inv_freq": value.flatten().clone(),
        }
    elif change == 8:
        weights |= {name: value, f"{name.removesuffix('.weight')}.qweight": value.clone()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def header(folder: Path, rng: random.Random) -> None:
    """A header that lies."""
    entries, data = _header(folder)
    name = rng.choice([key for key in sorted(entries) if key != "__metadata__"])
    entry, first = entries[name], dict(entries[name])
    changes: tuple[dict[str, Any], ...] = (
        {"dtype": "F8_E9M9"},
        {"dtype": ["F32"]},
        {"shape": [2**62, 2**62]},
        {"shape": [-1]},
        {"shape": [1] * 5000},
        {"shape": "all"},
        {"data_offsets": [0, 2**61]},
        {"data_offsets": [entry["data_offsets"][0] + 4, entry["data_offsets"][1] + 4]},
        {"data_offsets": [8, 4]},
        {"data_offsets": None},
    )
    entries[name] = first | rng.choice(changes)
    _weights(folder, entries, data)


def header_file(folder: Path, rng: random.Random) -> None:
    """A file that is no safetensors file, or is cut."""
    whole = (folder / WEIGHTS).read_bytes()
    entries, data = _header(folder)
    text = json.dumps(entries)
    contents = (
        *(b"", whole[:4], whole[:-1], whole + b"\0", whole[: len(whole) // 2], _POINTER),
        *(struct.pack("<Q", 2**63) + whole[8:], b"\x80\x04" + whole, b"<html>" + whole),
        *(struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}" + data),
    )
    if rng.random() < 0.8:
        (folder / WEIGHTS).write_bytes(rng.choice(contents))
    else:
        name = next(iter(entries))
        twice = f"{{{json.dumps(name)}: {json.dumps(entries[name])}, {text[1:]}"
        _weights(folder, twice.encode(), data)


# --- files and links ---------------------------------------------------------------------------


def index(folder: Path, rng: random.Random) -> None:
    """An index that leads to no file, another folder, or other tensors."""
    names = sorted(key for key in _header(folder)[0] if key != "__metadata__")
    whole: dict[str, Any] = dict.fromkeys(names, WEIGHTS)
    maps: tuple[Any, ...] = (
        *({}, [], None, whole | {"ghost": WEIGHTS}, whole | {"ghost": "missing.safetensors"}),
        *(whole | {names[0]: name} for name in ("../x", "/etc/passwd", "..", "", LONG, 3, "a\0b")),
        *(whole | {names[0]: name} for name in (CONFIG, ".", "sub/x.safetensors")),
        dict.fromkeys(names[1:], WEIGHTS),
    )
    (folder / INDEX).write_text(json.dumps({"weight_map": rng.choice(maps)}))


def twice(folder: Path, rng: random.Random) -> None:
    """Two files that both hold all tensors."""
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file in files:
        (folder / file).write_bytes(whole)
    names = sorted(key for key in json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]]))
    named = {name: rng.choice(files) for name in names if name != "__metadata__"}
    if rng.random() < 0.7:
        (folder / INDEX).write_text(json.dumps({"weight_map": named}))


def not_a_file(folder: Path, rng: random.Random) -> None:
    """A pipe, a folder, a device, a link to itself or to somebody else's file."""
    path = folder / rng.choice([CONFIG, WEIGHTS, "tokenizer.json", INDEX])
    path.unlink(missing_ok=True)
    kind = rng.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.symlink_to(path)
    elif kind == 4:
        path.symlink_to("/etc/passwd")
    else:
        (folder.parent / "secret").write_text("{}")
        path.symlink_to(folder.parent / "secret")


KINDS: dict[str, tuple[Mutation, int]] = {
    function.__name__: (function, count)
    for function, count in (
        (config_value, 12),
        (config_number, 5),
        (config_without, 5),
        (config_switch, 7),
        (config_file, 4),
        (tensors, 7),
        (header, 4),
        (header_file, 3),
        (index, 4),
        (twice, 1),
        (not_a_file, 4),
    )
}
"""Kinds of mutations, and how many of each are made of each family."""


def cases() -> Iterator[tuple[str, str, int]]:
    """All mutations, as family, kind and number."""
    for family in FAMILIES:
        for kind, (_, count) in KINDS.items():
            for number in range(count):
                yield family, kind, number


def mutate(folder: Path, family: str, kind: str, number: int) -> None:
    """Break a folder in place."""
    KINDS[kind][0](folder, random.Random(f"{family} {kind} {number}"))
