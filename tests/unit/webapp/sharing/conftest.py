"""A Redis server that was started for the tests."""

from collections.abc import Iterator

import pytest

from moe_megatron.platform.scratch import environment
from moe_megatron.testing.redis_server import PASSWORD, RedisServer, program, redis_server


@pytest.fixture(scope="session")
def started_redis() -> Iterator[RedisServer]:
    if program() is None:
        pytest.skip("needs Redis: apt-get install -y redis-server")
    with redis_server() as server, environment({"REDIS_PASSWORD": PASSWORD}):
        yield server


@pytest.fixture
def redis(started_redis: RedisServer) -> RedisServer:
    """One that runs, and is empty."""
    started_redis.stop()
    started_redis.start()
    return started_redis
