"""The Redis of the tests is a real one."""

import pytest
import redis.asyncio

from tests.real.conftest import RedisServer

pytestmark = pytest.mark.real


async def test_redis_answers_and_runs_lua(redis_server: RedisServer):
    """PING, and a script over a key: what shared budgets will need."""
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        assert await client.ping()
        add = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        assert [await add(keys=["n"], args=[2]), await add(keys=["n"], args=[3])] == [2, 5]
