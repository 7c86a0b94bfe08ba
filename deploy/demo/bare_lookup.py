"""What lookups are measured against: one GET and nothing else, over HTTP and in process. Run as
`python -m deploy.demo.bare_lookup TASK`, the task as JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

import msgspec
import redis.asyncio
import uvicorn
import uvloop

from deploy.demo.lookup_data import BARE_PREFIX, settings
from deploy.demo.lookup_loop import Loop, measure_loop
from pipeline.stores.redis_client import RedisClient

CONNECTIONS_MAX = 2_000
Get = Callable[[str], Awaitable[bytes | None]]
Message = MutableMapping[str, Any]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A server on `port`, or, with `loop`, a measurement in this process. `client`: redis-py's pool of connections, or
    the one connection that our stores share."""

    redis: str
    client: Literal["redis-py", "wire"] = "redis-py"
    port: int = 0
    loop: Loop | None = None


def main() -> None:
    task = msgspec.json.decode(sys.argv[1], type=Task)
    if task.loop is None:
        uvloop.run(_serve(task))
    else:
        print(msgspec.json.encode(uvloop.run(_loop(task, task.loop))).decode())


async def _serve(task: Task) -> None:
    get = _client(task)

    async def application(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        value = await get(scope["path"].rpartition("/")[2])
        body = b"" if value is None else value
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 404 if value is None else 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        application,
        host="127.0.0.1",
        port=task.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    await uvicorn.Server(config).serve()


async def _loop(task: Task, loop: Loop) -> dict[str, Any]:
    get = _client(task)

    async def ask(key: str) -> str:
        return "missing" if await get(key) is None else "found"

    return await measure_loop(loop, ask)


def _client(task: Task) -> Get:
    if task.client == "wire":
        ours = RedisClient(settings(task.redis))

        async def get(key: str) -> bytes | None:
            value: bytes | None = await ours.run("GET", BARE_PREFIX + key)
            return value

        return get
    pool: Any = redis.asyncio.Redis.from_url(task.redis, max_connections=CONNECTIONS_MAX)

    async def get_pooled(key: str) -> bytes | None:
        value: bytes | None = await pool.get(BARE_PREFIX + key)
        return value

    return get_pooled


if __name__ == "__main__":
    main()
