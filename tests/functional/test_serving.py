"""`moe-megatron serve` as those who use it: OpenAI's own client, wrong requests, and signals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from moe_megatron.serving.grpc_api import load_grpc
from moe_megatron.testing.expert_models import save_model
from moe_megatron.text.loading import load_tokenizer
from tests.unit.serving.test_row_adapters import save_adapter

KEY = "sk-of-a-test"
CONTEXT = 64
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[str]"
    url: str
    grpc_port: int = 0

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}v1", api_key=KEY, max_retries=0)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Status and text of an answer; a body that is bytes is sent as it is."""
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        known = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = Request(self.url + path, sent, {**known, **headers})
        try:
            with urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        lines = self.ask("metrics")[1].splitlines()
        return sum(float(it.rpartition(" ")[2]) for it in lines if it.startswith(name))


def nothing_runs(server: Server) -> bool:
    """Whether the server computes nothing, before long."""
    deadline = time.monotonic() + 30
    while server.metric("moe_serve_requests_in_progress") and time.monotonic() < deadline:
        time.sleep(0.05)
    return server.metric("moe_serve_requests_in_progress") == 0


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "moe_megatron", "serve", str(folder), "--port", "0", *words]
    environment = {**os.environ, "MOE_MEGATRON_API_KEY": KEY}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        lines = [next(process.stdout) for _ in range(3)]
        port = int(next(process.stdout).split()[-1]) if "--grpc-port" in words else 0
        yield Server(process, lines[1].split()[1].removesuffix("v1"), port)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    known = load_tokenizer(str(tokenizer))
    place = tmp_path_factory.mktemp("served") / "tiny"
    save_model("mixtral", place, vocab_size=known.vocab_size, max_position_embeddings=CONTEXT)
    known.save(place)
    (place / "chat_template.jinja").write_text(_TEMPLATE)
    return place


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    adapter = save_adapter(folder, tmp_path_factory.mktemp("adapter"), target_modules=["v_proj"])
    words = ["--batch", "4", "--queue", "4", "--adapter", f"law={adapter}", "--grpc-port", "0"]
    with serving(folder, *words) as it:
        yield it


def test_openais_client_gets_the_same_text_whole_and_in_a_stream(server: Server) -> None:
    with server.client as client:
        assert [it.id for it in client.models.list()] == ["tiny", "law"]
        more: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0}
        whole = client.completions.create(prompt="Once upon", logprobs=2, **more)
        usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
        parts = list(client.completions.create(prompt="Once upon", stream=True, **more, **usage))
        assert "".join(it.choices[0].text for it in parts[:-1]) == whole.choices[0].text
        assert whole.usage is not None
        assert whole.usage == parts[-1].usage
        assert whole.usage.completion_tokens == 8
        assert whole.choices[0].finish_reason == parts[-2].choices[0].finish_reason == "length"
        assert whole.choices[0].logprobs is not None
        assert len(whole.choices[0].logprobs.token_logprobs or ()) == 8


def test_openais_client_chats(server: Server) -> None:
    says: Any = [{"role": "user", "content": "Hello"}]
    more: dict[str, Any] = {"model": "tiny", "messages": says, "temperature": 0, "max_tokens": 6}
    with server.client as client:
        whole = client.chat.completions.create(logprobs=True, top_logprobs=1, **more)
        parts = list(client.chat.completions.create(stream=True, **more))
    text = whole.choices[0].message.content
    assert "".join(it.choices[0].delta.content or "" for it in parts) == text
    told = whole.choices[0].logprobs
    assert told is not None
    assert len(told.content or ()) == 6


def test_a_stop_text_ends_an_answer(server: Server) -> None:
    more: dict[str, Any] = {"model": "tiny", "prompt": "Once", "max_tokens": 20, "temperature": 0}
    with server.client as client:
        text = client.completions.create(**more).choices[0].text
        stop = text[len(text) // 2 :][:3]
        found = client.completions.create(stop=stop, **more).choices[0]
    assert found.text == text[: text.index(stop)]
    assert found.finish_reason == "stop"


def test_an_adapter_is_a_model_of_its_own(server: Server) -> None:
    more: dict[str, Any] = {"prompt": "Once upon", "max_tokens": 8, "temperature": 0}
    with server.client as client:
        texts = {it: client.completions.create(model=it, **more) for it in ("tiny", "law")}
    assert texts["law"].model == "law"
    assert texts["law"].choices[0].text != texts["tiny"].choices[0].text


def test_mistakes_are_openais_errors_in_plain_words(server: Server) -> None:
    with server.client as client:
        with pytest.raises(openai.NotFoundError, match=r"no model or adapter 'other'.* and law"):
            client.completions.create(model="other", prompt="a")
        with pytest.raises(openai.BadRequestError, match="at most 64 tokens of a request") as long:
            client.completions.create(model="tiny", prompt="word " * 100)
        assert long.value.code == "context_length_exceeded"
        stranger = client.with_options(api_key="sk-wrong")
        with pytest.raises(openai.AuthenticationError, match="needs an API key"):
            stranger.models.list()
    assert server.ask("health", Authorization="")[0] == 200
    assert server.ask("v1/models", Host="evil.example")[0] == 403
    assert server.ask("v1/models", Origin="http://evil.example")[0] == 403


def test_a_late_request_is_given_up(server: Server) -> None:
    body = {"prompt": "a", "max_tokens": 50, "timeout": 0.001}
    status, text = server.ask("v1/completions", body)
    assert status == 504
    assert "not finished within 0.001 s" in text


def test_a_client_that_goes_away_is_not_computed_on(server: Server) -> None:
    more: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 55}
    with server.client as client:
        stream = client.completions.create(stream=True, **more)
        next(iter(stream))
        stream.close()
    assert nothing_runs(server)


def test_more_than_may_wait_are_told_when_to_come_again(server: Server) -> None:
    body = {"prompt": ["a"] * 9, "max_tokens": 40}
    status, text = server.ask("v1/completions", body)
    assert status == 429
    assert "try again in" in text


def test_metrics_tell_tokens_and_their_experts(server: Server) -> None:
    before = server.metric("moe_expert_tokens_total")
    asked = {"prompt": [1, 2, 3, 4, 5], "max_tokens": 3, "temperature": 0}
    generated = server.metric("moe_serve_generated_tokens_total")
    assert server.ask("v1/completions", asked)[0] == 200
    assert server.metric("moe_serve_generated_tokens_total") == generated + 3
    assert server.metric("moe_expert_tokens_total") == before + (5 + 2) * 3 * 2


def test_frames_of_a_websocket_answer_several_requests(server: Server) -> None:
    address = server.url.replace("http", "ws") + "v1/stream"
    more: dict[str, Any] = {"prompt": "Once upon", "max_tokens": 8, "temperature": 0}
    wanted = json.loads(server.ask("v1/completions", more)[1])
    with connect(address, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        socket.send(json.dumps({"id": "long", "prompt": "a", "max_tokens": 55}))
        socket.send(json.dumps({"id": 1, **more}))
        socket.send(json.dumps({"id": 2, **more, "model": "other"}))
        socket.send("[")
        found: dict[Any, list[dict[str, Any]]] = {}
        while not found.get(1) or "done" not in found[1][-1]:
            frame = json.loads(socket.recv(timeout=60))
            found.setdefault(frame["id"], []).append(frame)
        socket.send(json.dumps({"cancel": "long"}))
    text = "".join(it["chunk"]["choices"][0]["text"] for it in found[1][:-1])
    assert text == wanted["choices"][0]["text"]
    assert found[1][-1]["usage"] == wanted["usage"]
    assert "no model or adapter" in found[2][0]["error"]["message"]
    assert "not JSON" in found[None][0]["error"]["message"]
    with pytest.raises(InvalidStatus), connect(address):
        pass


def test_grpc_answers_as_http_does(server: Server) -> None:
    grpc, messages, services = load_grpc()
    key = (("authorization", f"Bearer {KEY}"),)
    more: dict[str, Any] = {"prompt": "Once upon", "max_tokens": 8, "temperature": 0.0}
    wanted = json.loads(server.ask("v1/completions", more)[1])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        model = services.ModelStub(channel)
        assert list(model.Health(messages.HealthRequest()).models) == ["tiny", "law"]
        request = messages.CompletionRequest(**more)
        whole = model.Complete(request, metadata=key)
        assert whole.text == wanted["choices"][0]["text"]
        assert whole.completion_tokens == wanted["usage"]["completion_tokens"]
        chunks = list(model.Stream(request, metadata=key))
        assert "".join(it.text for it in chunks) == whole.text
        assert chunks[-1].finish_reason == whole.finish_reason
        says = [messages.Message(role="user", content="Hello")]
        chats = messages.CompletionRequest(messages=says, max_tokens=4)
        assert model.Complete(chats, metadata=key).completion_tokens > 0
        for wrong, metadata, code in (
            ({"prompt": "a", "model": "other"}, key, "NOT_FOUND"),
            ({"prompt": "a"}, (), "UNAUTHENTICATED"),
            ({}, key, "INVALID_ARGUMENT"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                model.Complete(messages.CompletionRequest(**wrong), metadata=metadata)
            assert caught.value.code() == getattr(grpc.StatusCode, code)
        stream = model.Stream(messages.CompletionRequest(prompt="a", max_tokens=55), metadata=key)
        next(stream)
        stream.cancel()
    assert nothing_runs(server)


def malformed(number: int) -> tuple[str, bytes, dict[str, str]]:
    """A request that is wrong in one of many ways."""
    dice = random.Random(number)
    fine: dict[str, Any] = {"prompt": "a", "max_tokens": 2}
    field = dice.choice(
        ["prompt", "max_tokens", "temperature", "top_p", "stop", "stream", "model", "seed", "n"]
    )
    odd = [{}, -1, 1e400, "\x00", [[]], [None], {"a": 1}, -(2**70), True, [{}], "x" * 5000]
    makers = [
        lambda: dice.randbytes(dice.randrange(200)),
        lambda: json.dumps(fine).encode()[: dice.randrange(1, 20)],
        lambda: b"[" * 5000,
        lambda: b'"text"',
        lambda: json.dumps({**fine, "max_tokens": "many"}).encode(),
        lambda: json.dumps({"messages": dice.choice(odd)}).encode(),
        lambda: json.dumps({**fine, "prompt": dice.choice(odd[:5])}).encode(),
        lambda: json.dumps({**fine, field: {"odd": dice.choice(odd[:4])}}).encode(),
        lambda: json.dumps({**fine, "prompt": [10**9]}).encode(),
    ]
    path = dice.choice(["v1/completions", "v1/chat/completions", "v1/nothing"])
    kind = dice.choice(["application/json"] * 5 + ["text/plain"])
    body = dice.choice(makers)()
    if path == "v1/chat/completions" and b"messages" not in body:
        body += b" "
    return path, body, {"Content-Type": kind}


def test_five_hundred_wrong_requests_do_no_harm(server: Server) -> None:
    for number in range(500):
        path, body, headers = malformed(number)
        status, text = server.ask(path, body, **headers)
        assert 400 <= status < 500, (number, status, body[:100])
        assert json.loads(text)["error"]["message"]
    assert server.ask("v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200


def test_an_expert_that_is_gone_fails_its_requests_and_not_the_server(
    folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    # 24 experts of 3 matrices [48, 32] in fp32; a token needs 2 in each of 3 layers
    with serving(copy, "--cache-gb", f"{7 * 3 * 48 * 32 * 4 / 1e9}") as server:
        body = {"prompt": "Once upon", "max_tokens": 4, "temperature": 0}
        fine = server.ask("v1/completions", body)
        assert fine[0] == 200
        with weights.open("r+b") as file:
            file.truncate(len(whole) // 8)
        status, text = server.ask("v1/completions", {**body, "prompt": "The lazy dogs jump over"})
        assert status == 500
        assert "model.safetensors" in text
        with weights.open("r+b") as file:
            file.write(whole)
        status, text = server.ask("v1/completions", body)
        assert json.loads(text)["choices"] == json.loads(fine[1])["choices"]


def test_sigterm_finishes_what_runs_and_refuses_what_comes(folder: Path) -> None:
    with serving(folder) as server:
        body = {"prompt": "a", "max_tokens": 55, "temperature": 0}
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(server.ask("v1/completions", body)[0]))
            for _ in range(3)
        ]
        for it in threads:
            it.start()
        while server.metric("moe_serve_generated_tokens_total") < 4:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        refused = 200
        while refused == 200:
            try:
                refused = server.ask("v1/completions", {"prompt": "a", "max_tokens": 1})[0]
            except OSError:  # it has ended already
                refused = 503
        assert refused == 503
        for it in threads:
            it.join(60)
        assert statuses == [200] * 3
        assert server.process.wait(60) == 0


@pytest.mark.deep
def test_two_interrupts_end_it_at_once(folder: Path) -> None:
    with serving(folder) as server:
        body = {"prompt": "a", "max_tokens": 60, "temperature": 0, "stream": True}
        request = Request(
            server.url + "v1/completions",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=60) as answer:
            answer.readline()
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(30) in (0, 130)


def test_others_may_reach_it_only_with_keys(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_megatron.cli.main import main

    assert main(["serve", str(folder), "--print-vllm", "--name", "mine"]) == 0
    assert "--served-model-name mine" in capsys.readouterr().out
    monkeypatch.delenv("MOE_MEGATRON_API_KEY", raising=False)
    for words, said in (
        (["--host", "0.0.0.0"], "give API keys with --api-keys"),
        (["--context", "99999"], "context (99999) must be 2 to 64 tokens"),
        (["--policy", "lru"], "give its size with --cache-gb"),
        (["--api-keys", str(folder / "none")], "cannot be read"),
        (["--adapter", "law"], "must be a name and a folder, such as"),
        (["--adapter", f"{folder.name}={folder}"], "are both named 'tiny'"),
        (["--adapter", f"law={folder}"], "holds no adapter_config.json"),
        (["--batch", "0"], "batch (0) must be at least 1"),
    ):
        assert main(["serve", str(folder), "--port", "0", *words]) == 2
        assert said in capsys.readouterr().err
