"""What a process says of itself: checks by name, the three probes, and the small server."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request

import pytest

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.core.health import Health, serve


def asked(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_way_of_a_process_through_its_probes() -> None:
    health = Health("worker")
    problems = {"placed": "no partitions yet", "redis": "", "loop": ""}
    health.check("placed", lambda: problems["placed"], "startup")
    health.check("redis", lambda: problems["redis"], "note")
    health.check("loop", lambda: problems["loop"], "live")
    port = serve(0, health, pages={"/lag": lambda: (b"{}", "application/json")})

    def states() -> list[int]:
        return [asked(port, path)[0] for path in ("/livez", "/startupz", "/readyz")]

    assert states() == [200, 503, 503]
    health.started()
    assert states() == [200, 503, 503], "recovery is still to come"
    status, text = asked(port, "/readyz")
    assert "[-]placed failed: no partitions yet" in text and "[+]started ok" in text and "readyz check failed" in text
    problems["placed"] = ""
    assert states() == [200, 200, 200]
    assert asked(port, "/readyz") == (200, "ok\n")
    problems["redis"] = "redis does not answer"
    assert states() == [200, 200, 200], "an outage that all share unreadies nobody"
    assert "[~]redis degraded: redis does not answer" in asked(port, "/readyz?verbose")[1]
    assert "[+]loop ok\nlivez check passed\n" in asked(port, "/livez?verbose")[1]
    problems["loop"] = "it stands"
    assert states() == [503, 200, 200]
    problems["loop"] = ""
    health.stopping()
    assert states() == [200, 200, 503], "who stops is alive, and gets no more work"
    assert "worker is stopping" in asked(port, "/readyz")[1]
    assert asked(port, "/lag") == (200, "{}")
    assert "process_cpu_seconds_total" in asked(port, "/metrics")[1]
    assert asked(port, "/readyz", "HEAD") == (503, "")
    status, text = asked(port, "/nothing")
    assert status == 404 and "/livez" in text and "/lag" in text


def test_checks_that_raise_are_replaced_and_go() -> None:
    health = Health("connect")
    health.started()

    def away() -> str:
        raise Retryable("the source is away")

    health.check("source", away)
    assert health.ready().problems == {"source": "the source is away"}
    health.check("source", lambda: "", "ready")
    assert health.ready().ok
    health.check("source", away)
    health.forget("source")
    assert health.ready().ok


def test_a_loop_that_stands_is_not_alive() -> None:
    health = Health("worker")
    seen: list[bool] = []

    def stand() -> None:
        time.sleep(0.5)

    async def work() -> None:
        health.beats(limit_s=0.2)
        seen.append(health.live().ok)
        stand()
        seen.append(health.live().ok)
        for _ in range(200):
            await asyncio.sleep(0.02)
            if health.live().ok:
                seen.append(True)
                return

    asyncio.run(work())
    assert seen == [True, False, True]


def test_a_slow_client_holds_up_nobody_and_a_taken_port_is_told() -> None:
    health = Health("connect")
    port = serve(0, health)
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET /live")
        assert asked(port, "/livez")[0] == 200
    with pytest.raises(EnvironmentProblem, match=f"port {port}.*--metrics-port"):
        serve(port, health)
