"""`moe-megatron serve`: serve a model to programs, by OpenAI's API."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.cli.parser import Parser
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

_PORT = 8000
_EPILOG = """\
example:
  moe-megatron serve my_model
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "Once upon a time", "max_tokens": 32}'

The server is for experiments and few users; in production, serve with vLLM."""


def run(argv: Sequence[str]) -> int:
    """Run the verb, until Ctrl-C or SIGTERM.

    Args:
        argv: What follows `moe-megatron serve`.

    Returns:
        The exit code.

    Raises:
        BackendUnavailableError: The model cannot be batched.
        CheckpointError: The model cannot be read.
        ConfigError: An option cannot be used, or the port is taken.
        DataError: There is no tokenizer.
    """
    options = _parser().parse_args(argv)
    if options.policy is not None and options.cache_gb is None:
        raise ConfigError("--policy is of the expert cache; give its size with --cache-gb, too.")
    adapters = dict(map(_adapter, options.adapter))
    if len(adapters) < len(options.adapter):
        raise ConfigError(
            "two adapters have the same name; give each another --adapter NAME=FOLDER."
        )
    if options.print_vllm:
        return _print_vllm(options, adapters)
    # Imported here: `moe-megatron serve --help` need not load torch.
    from moe_megatron.inference.expert_cache import ExpertCache
    from moe_megatron.serving.keys import read_keys
    from moe_megatron.serving.server import ModelServer, ServeOptions

    cache = None
    if options.cache_gb is not None:
        cache = ExpertCache(options.cache_gb, options.policy or "lru")
    server = ModelServer(
        ServeOptions(
            model=options.model,
            name=options.name,
            host=options.host,
            port=options.port,
            names=options.allow_host,
            keys=read_keys(options.api_keys),
            context=options.context,
            batch=options.batch,
            queue=options.queue,
            deadline=options.deadline,
            cache=cache,
            adapters=adapters,
            grpc_port=options.grpc_port,
        )
    )
    server.warm_up()
    print(
        f"serving  {', '.join(server.models)}\nat       {server.url}v1\n"
        f"up to {options.batch} requests together, {server.context:,} tokens each; Ctrl-C ends it",
        flush=True,
    )
    server.serve()
    print("stopped", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron serve",
        description="Serve a Hugging Face folder to programs: OpenAI's API for completions and "
        "chats, with requests computed together that join and leave between tokens.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a Hugging Face folder, or a hub id")
    add("--name", help="name of the model for clients (default: the folder's)")
    add("--port", type=int, default=_PORT, help=f"port; 0 for a free one (default: {_PORT})")
    add(
        "--grpc-port",
        type=int,
        metavar="PORT",
        help="serve gRPC beside HTTP, on this port; 0 for a free one (default: none)",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which clients may reach it, as of a proxy (repeatable)",
    )
    add(
        "--api-keys",
        type=user_path,
        metavar="FILE",
        help="keys that clients must send one of, one a line; or one in MOE_MEGATRON_API_KEY",
    )
    add(
        "--context",
        type=int,
        metavar="TOKENS",
        help="most tokens of a request, prompt included (default: the model's, at most 2,048)",
    )
    add("--batch", type=int, default=16, help="requests computed together (default: 16)")
    add("--queue", type=int, default=64, help="requests that may wait (default: 64)")
    add(
        "--deadline",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="after which a request is given up (default: 600)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter in PEFT's format, for requests whose model is NAME (repeatable)",
    )
    add("--cache-gb", type=float, metavar="GB", help="keep only some experts in memory")
    add("--policy", help="which of them: lru (default), lfu, weighted_lru, static")
    add(
        "--print-vllm",
        action="store_true",
        help="print the command by which vLLM serves the folder, and what of it vLLM may not like",
    )
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _print_vllm(options: argparse.Namespace, adapters: dict[str, Path]) -> int:
    from moe_megatron.serving.vllm_command import vllm_command

    folder = user_path(options.model)
    command = vllm_command(
        folder,
        name=options.name or folder.resolve().name,
        host=options.host,
        port=options.port,
        context=options.context,
        adapters=adapters,
    )
    print(command)
    for remark in command.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return 0


def _adapter(text: str) -> tuple[str, Path]:
    name, found, folder = text.partition("=")
    if not (name and found and folder):
        raise ConfigError(
            f"--adapter ({text}) must be a name and a folder, such as law=adapters/law."
        )
    return name, user_path(folder)
