"""The same service over gRPC (`model.proto`), on the event loop of the HTTP server.

Code for the messages is made from the file when it starts, by grpcio-tools. A call's deadline is
its own; a call that is cancelled leaves the batch.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.serving.keys import Keys
from moe_megatron.serving.openai_fields import Fields, chat, completion
from moe_megatron.serving.problems import Problem
from moe_megatron.serving.service import Answer, Service

PROTO = "moe_megatron/serving/model.proto"
PATH = "grpc"
_MOST_MESSAGE = 4 * 2**20
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_OPTIONAL = ("prompt", "max_tokens", "temperature", "top_p", "seed")

Counted = Callable[[str, int], None]


def load_grpc() -> tuple[Any, Any, Any]:
    """The library, and the messages and services of `model.proto`.

    Raises:
        BackendUnavailableError: grpcio or grpcio-tools is not installed.
    """
    try:
        import grpc
        import grpc_tools  # noqa: F401  # what makes the code
    except ImportError as error:
        raise BackendUnavailableError(
            "gRPC needs grpcio and grpcio-tools: pip install 'open-moe-trainer-lab[serving]'; or "
            "leave --grpc-port out."
        ) from error
    messages, services = grpc.protos_and_services(PROTO)
    return grpc, messages, services


class GrpcServer:
    """A gRPC server that runs in the block of `serving`.

    Args:
        service: What answers.
        keys: Who may use it.
        address: Host and port, such as "127.0.0.1:50051"; port 0 for any free one.
        counted: Is told the path and the status of each request.

    Raises:
        BackendUnavailableError: grpcio or grpcio-tools is not installed.
    """

    def __init__(self, service: Service, keys: Keys, address: str, counted: Counted) -> None:
        self._grpc, self._messages, self._services = load_grpc()
        self._service, self._keys, self._counted = service, keys, counted
        self._address = address

    @asynccontextmanager
    async def serving(self, told: Callable[[int], None]) -> AsyncIterator[None]:
        """Serve in the `async with` block.

        Args:
            told: Is told the port.

        Raises:
            ConfigError: The address cannot be listened on.
        """
        limits = [("grpc.max_receive_message_length", _MOST_MESSAGE), ("grpc.so_reuseport", 0)]
        server = self._grpc.aio.server(options=limits)
        self._services.add_ModelServicer_to_server(self, server)
        try:
            told(server.add_insecure_port(self._address))
        except RuntimeError as error:
            raise ConfigError(
                f"gRPC cannot be served on {self._address} ({error}); give a free port with "
                "--grpc-port, 0 for any."
            ) from error
        await server.start()
        try:
            yield
        finally:
            await server.stop(grace=1)

    async def Complete(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The whole answer."""
        try:
            answer = self._answer(request, context)
            async with aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
                found = [it async for it in pieces]
        except Problem as problem:
            await self._abort(context, problem)
            raise
        self._counted(PATH, 200)
        return self._messages.Completion(
            text="".join(it.text for it in found),
            finish_reason=found[-1].finish,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
        )

    async def Stream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The answer as it comes."""
        try:
            answer = self._answer(request, context)
            async with aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
                async for it in pieces:
                    yield self._messages.Chunk(text=it.text, finish_reason=it.finish or "")
        except Problem as problem:
            await self._abort(context, problem)
        self._counted(PATH, 200)

    async def Health(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Whether the model can compute, and takes requests."""
        alive = self._service.engine.alive
        return self._messages.HealthStatus(
            alive=alive, ready=alive and not self._service.leaving, models=self._service.models
        )

    def _answer(self, request: Any, context: Any) -> Answer:
        metadata = dict(context.invocation_metadata())
        if not self._keys.allow(str(metadata.get("authorization", ""))):
            raise Problem(
                401, "this server needs an API key; send the metadata authorization: Bearer KEY."
            )
        return self._service.answer(self._fields(request, context.time_remaining()))

    def _fields(self, request: Any, seconds: float | None) -> Fields:
        body = {name: getattr(request, name) for name in _OPTIONAL if request.HasField(name)}
        body |= {"model": request.model or None, "stop": list(request.stop)}
        body["timeout"] = None if seconds is None else max(seconds, 0.0)
        if not request.messages:
            return completion(body)
        said = [{"role": it.role, "content": it.content} for it in request.messages]
        return chat({**body, "messages": said})

    async def _abort(self, context: Any, problem: Problem) -> None:
        self._counted(PATH, problem.status)
        code = getattr(self._grpc.StatusCode, _STATUS.get(problem.status, "INTERNAL"))
        await context.abort(code, problem.message)
