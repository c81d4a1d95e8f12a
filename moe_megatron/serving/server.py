"""The process: loads a model, serves it, and leaves in order.

SIGTERM or Ctrl-C: new requests are refused, running ones are finished, then it ends with 0. A
second one ends it at once.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

import uvicorn

from moe_megatron.errors import INTERRUPTED, ConfigError
from moe_megatron.http_server.listening import listen, url_of
from moe_megatron.inference.expert_cache import ExpertCache
from moe_megatron.serving.asked import Asked
from moe_megatron.serving.batch_engine import Engine
from moe_megatron.serving.frames_api import MOST_FRAME
from moe_megatron.serving.grpc_api import GrpcServer
from moe_megatron.serving.key_gate import Gate
from moe_megatron.serving.keys import VARIABLE, Keys
from moe_megatron.serving.metrics import ServingMetrics
from moe_megatron.serving.rest import make_app
from moe_megatron.serving.routing_counts import RoutingCounts
from moe_megatron.serving.row_adapters import RowAdapters
from moe_megatron.serving.served_model import Loaded, load
from moe_megatron.serving.service import Service

PORT = 8000
_REMEDY = (
    f"give API keys with --api-keys FILE (one a line) or in {VARIABLE}; or leave --host out and "
    "forward the port (ssh -L)."
)
_MOST_CONNECTIONS = 1024
_MOST_HEADER_BYTES = 16 * 1024
_LOOKS_SECONDS = 0.05
_STARTING_SECONDS = 60.0
_USUAL_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What is served, and how.

    Attributes:
        model: A Hugging Face folder, or a hub id.
        name: Under which clients ask for it; None: the name of the folder.
        host: Name or address of the interface.
        port: 0 for any free port.
        names: Names under which it may be reached, besides addresses and localhost.
        keys: Who may use it.
        context: Most tokens of a request, prompt included; None: what the model was made for, at
            most 2,048.
        batch: Requests that are computed together.
        queue: Requests that may wait.
        deadline: Most seconds of a request.
        cache: Memory for some of the experts; None for all.
        grpc_port: Port for gRPC, 0 for any free one; None serves none.
        adapters: Folders of adapters in PEFT's format, by the names that clients ask for.
    """

    model: str | Path
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = PORT
    names: Sequence[str] = ()
    keys: Keys
    context: int | None = None
    batch: int = 16
    queue: int = 64
    deadline: float = 600.0
    cache: ExpertCache | None = None
    grpc_port: int | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)

    @property
    def served_name(self) -> str:
        """Under which clients ask for the model itself."""
        return self.name or Path(self.model).resolve().name


class ModelServer:
    """A server that has its port and its model, and serves when it is told to.

    Raises:
        BackendUnavailableError: Transformers cannot batch this model.
        CheckpointError: The model cannot be read.
        ConfigError: The address cannot be listened on, or an option does not fit the model.
        DataError: There is no tokenizer.
    """

    def __init__(self, options: ServeOptions) -> None:
        for name, least in (("batch", 1), ("queue", 0)):
            if getattr(options, name) < least:
                raise ConfigError(f"{name} ({getattr(options, name)}) must be at least {least}.")
        if not options.deadline > 0:
            raise ConfigError(f"deadline ({options.deadline:g}) must be more than 0 seconds.")
        self._socket = listen(
            options.host,
            options.port,
            for_all=not options.keys,
            what="the model",
            remedy=_REMEDY,
        )
        self.url = url_of(options.host, self._socket)
        """Where clients on this machine find it."""
        try:
            self._loaded, adapters = _on_a_thread(lambda: _loaded(options))
            self.context = _context(options.context, self._loaded.context)
            """Most tokens of a request."""
            counts = RoutingCounts(self._loaded.model)
            metrics = ServingMetrics(counts if counts.layers else None, lambda: self._running())
            self._engine = Engine(
                self._loaded.model,
                ends=self._loaded.ends,
                context=self.context,
                batch=options.batch,
                queue=options.queue,
                watches=metrics,
                adapted=None if adapters is None else adapters.step,
            )
        except BaseException:
            self._socket.close()
            raise
        self._service = Service(
            self._engine,
            self._loaded.tokenizer,
            name=options.served_name,
            adapters=tuple(options.adapters),
            deadline=options.deadline,
        )
        self.models = self._service.models
        """Names that clients may ask for."""
        app = Gate(make_app(self._service, metrics), options.keys, [options.host, *options.names])
        grpc = None
        if options.grpc_port is not None:
            address = f"{options.host}:{options.grpc_port}"
            grpc = GrpcServer(self._service, options.keys, address, metrics.count)
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws_max_size=MOST_FRAME,
                limit_concurrency=_MOST_CONNECTIONS,
                h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            ),
            self.end,
            grpc,
        )
        self._thread: threading.Thread | None = None

    def warm_up(self) -> None:
        """Compute one token, so that the first request does not wait for what is made once."""
        done = threading.Event()
        asked = Asked(prompt=[self._loaded.tokenizer.eod_id], max_tokens=1)
        self._engine.submit(asked, lambda event: done.set())
        done.wait(_STARTING_SECONDS)

    def serve(self) -> None:
        """Serve until SIGINT, SIGTERM or `end`, and then until running requests are finished."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._engine.close()
            self._loaded.close()
            self._socket.close()

    def end(self) -> None:
        """Take no more requests, and stop when those that run are finished; from any thread."""
        if not self._service.leaving:
            self._service.leaving = True
            threading.Thread(target=self._end_when_idle, daemon=True).start()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve, name="serve", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _STARTING_SECONDS
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        if self._thread is not None:
            self._thread.join(_STARTING_SECONDS)

    def _running(self) -> int:
        return self._engine.running

    def _end_when_idle(self) -> None:
        while self._engine.running and self._engine.alive:
            time.sleep(_LOOKS_SECONDS)
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """Uvicorn's server, with another meaning of signals."""

    def __init__(
        self, config: uvicorn.Config, end: Callable[[], None], grpc: GrpcServer | None
    ) -> None:
        super().__init__(config)
        self._end, self._grpc = end, grpc
        self._asked = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, beside gRPC if there is one."""
        if self._grpc is None:
            await super().serve(sockets)
            return
        async with self._grpc.serving(_tell_port):
            await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave in order; the second time, at once."""
        if self._asked:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(INTERRUPTED if sig == signal.SIGINT else 128 + sig)
        self._asked = True
        self._end()


def _on_a_thread[T](work: Callable[[], T]) -> T:
    """Do some work on a thread that ends then.

    OpenMP keeps threads for each thread that has computed. With more of them than cores it no
    longer lets them wait actively, and decoding one text took 1.6 times as long (libgomp, two
    cores). So the only thread that lives and computes is the engine's.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _loaded(options: ServeOptions) -> tuple[Loaded, RowAdapters | None]:
    """The model and its adapters."""
    if options.served_name in options.adapters:
        raise ConfigError(
            f"the model and an adapter are both named {options.served_name!r}; give the model "
            "another name with --name, or the adapter one with --adapter NAME=FOLDER."
        )
    loaded = load(options.model, options.cache)
    if not options.adapters:
        return loaded, None
    adapters = RowAdapters(loaded.model, loaded.path, partial=options.cache is not None)
    for name, folder in options.adapters.items():
        adapters.add(name, folder)
    return loaded, adapters


def _tell_port(port: int) -> None:
    print(f"gRPC on port {port}", flush=True)


def _context(asked: int | None, made_for: int) -> int:
    if asked is None:
        return min(made_for, _USUAL_CONTEXT)
    if not 2 <= asked <= made_for:
        raise ConfigError(
            f"context ({asked}) must be 2 to {made_for} tokens, for which the model was made."
        )
    return asked
