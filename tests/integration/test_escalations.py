"""Questions for people on a real Kafka: asked, read, answered once, waited for, posted; also with something away."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiokafka import AIOKafkaProducer
from pydantic import SecretStr

from deploy.local.kafka import KafkaServer
from deploy.local.processes import choose_port
from pipeline.core import metrics
from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigError, EnvironmentProblem, Retryable
from pipeline.core.guarding import EscalationsConfig, WebhookConfig
from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.escalation_records import PersonsAnswer, encode_answer, encode_question
from pipeline.guard.escalations import Escalation
from pipeline.guard.guard import Guard
from pipeline.guard.http_client import HttpClient
from pipeline.guard.output import of_schema
from pipeline.guard.secrets import Secrets
from pipeline.guard.values import ModelRequest
from pipeline.guard.webhook import Webhook
from pipeline.streams.escalation_answers import Answers
from pipeline.streams.escalation_deliveries import Deliveries
from pipeline.streams.escalation_desk import EscalationDesk, Taken
from pipeline.streams.escalation_queue import KafkaEscalations
from pipeline.streams.escalation_watch import EscalationWatch
from tests.support.cli import ROOT, ctxpipe
from tests.support.eventually import eventually
from tests.support.streams import make_topic, new_name

pytestmark = pytest.mark.servers

SEAT = of_schema(
    "seat",
    {
        "type": "object",
        "properties": {"seat": {"type": "string"}, "row": {"type": "integer"}},
        "required": ["seat", "row"],
        "additionalProperties": False,
    },
)
DEAD = "http://127.0.0.1:1/v1"


def question(name: str, **more: Any) -> Escalation:
    given: dict[str, Any] = {
        "id": name, "task": "rebook", "tenant": "acme", "request_id": "r-1", "at_us": SystemClock().now_us(),
        "messages": [{"role": "user", "content": "Which seat? My key is sk-abcdefghijklmnopqrstuvwx"}], "data": {},
        "output_name": "seat", "json_schema": SEAT.json_schema, "attempts": (), "last_output": "",
    }  # fmt: skip
    return Escalation(**{**given, **more})


@pytest.fixture
def config() -> EscalationsConfig:
    return EscalationsConfig(topic=new_name("escalations"), put_timeout_s=20)


def guard(client: HttpClient, escalations: Any) -> Guard:
    endpoint = Endpoint(name="large", url=DEAD, model="gpt-4o")
    settings = GuardConfig(endpoints=(endpoint,), routes={"*": Route(primary="large", retries_max=0)})
    return Guard(settings, client, escalations)


def request(**more: Any) -> ModelRequest:
    messages = [{"role": "user", "content": "Which seat?"}]
    return ModelRequest(**{"task": "rebook", "messages": messages, "output": SEAT, "deadline_s": 25.0, **more})


async def test_what_no_model_answers_a_person_does_and_the_application_gets_it(
    kafka_bootstrap: str, config: EscalationsConfig
) -> None:
    async with (
        HttpClient() as client,
        KafkaEscalations(kafka_bootstrap, config) as escalations,
        Answers(kafka_bootstrap, config) as answers,
        EscalationDesk(kafka_bootstrap, config) as desk,
    ):
        result = await guard(client, escalations).call(request(tenant="acme"))
        assert (result.rung, result.escalation) == ("escalated", "recorded")
        waiting = asyncio.create_task(answers.wait(result.escalation_id, 60))
        (standing,) = (await desk.look()).questions
        whole = await desk.whole(standing)
        assert whole is not None and standing.open and whole.question.tenant == "acme"
        assert [one.reason for one in whole.question.attempts] == ["unreachable"]
        with pytest.raises(ConfigError, match="row"):
            await desk.answer(whole.question, {"seat": "12A", "row": "12"}, "ann")
        assert (await desk.look()).questions[0].open
        await desk.answer(whole.question, {"seat": "12A", "row": 12}, "ann", "by the window")
        answer = await waiting
        assert answer is not None and (answer.by, answer.note) == ("ann", "by the window")
        assert request().output.check_value(answer.value) == {"seat": "12A", "row": 12}
        again = await answers.wait(result.escalation_id, 60)
        assert again == answer, "asked once more, it is found where it lies"
        assert await answers.wait("nobody asked this", 0.2) is None
    async with Answers(kafka_bootstrap, config) as later:
        assert await later.wait(result.escalation_id, 60) == answer, "whoever starts again finds it"


async def test_of_two_who_answer_at_once_the_first_counts_for_everybody(
    kafka_bootstrap: str, config: EscalationsConfig
) -> None:
    async with KafkaEscalations(kafka_bootstrap, config) as escalations:
        await escalations.put(question("q"))
        await escalations.put(question("q"))

    async def answers(by: str) -> str:
        async with EscalationDesk(kafka_bootstrap, config) as desk:
            (standing,) = (await desk.look()).questions
            whole = await desk.whole(standing)
            assert whole is not None
            try:
                return (await desk.answer(whole.question, {"seat": by, "row": 1}, by)).by
            except Taken as taken:
                return f"{by} after {taken.answer.by}"

    told = await asyncio.gather(*(answers(f"p{number}") for number in range(6)))
    winners = [one for one in told if "after" not in one]
    assert len(winners) == 1
    assert {one.partition(" after ")[2] for one in told} == {"", winners[0]}
    async with Answers(kafka_bootstrap, config) as followed:
        async for number, answer in followed.follow():
            assert answer.by == winners[0] and number >= 2
            break


async def test_answers_are_followed_from_where_one_was(kafka_bootstrap: str, config: EscalationsConfig) -> None:
    async with KafkaEscalations(kafka_bootstrap, config) as escalations:
        for name in ("a", "b", "c"):
            await escalations.put(question(name))
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        await producer.send_and_wait(config.topic, b"junk of somebody else", key=b"junk")
        for number, name in enumerate(("b", "b", "a", "c")):
            answer = PersonsAnswer(to=name, value=number, by="x", at_us=1)
            key, value = encode_answer(answer, str(number))
            await producer.send_and_wait(config.topic, value, key=key)

    async def first(count: int, after: int = -1) -> list[tuple[int, str, Any]]:
        found = []
        async with Answers(kafka_bootstrap, config) as answers:
            async for number, answer in answers.follow(after):
                found.append((number, answer.to, answer.value))
                if len(found) == count:
                    return found
        return found

    everything = await first(3)
    assert [one[1:] for one in everything] == [("b", 0), ("a", 2), ("c", 3)]
    assert await first(2, everything[0][0]) == everything[1:]


async def test_what_waits_is_measured(kafka_bootstrap: str, config: EscalationsConfig) -> None:
    watch = EscalationWatch(kafka_bootstrap, config)
    try:
        assert await watch.look() == []
        task = new_name("task")
        hour_ago = SystemClock().now_us() - 3_600_000_000
        async with KafkaEscalations(kafka_bootstrap, config) as escalations:
            await escalations.put(question("a", task=task, at_us=hour_ago))
            await escalations.put(question("b", task=task))
        (one,) = await watch.look()
        assert one.waiting == 2 and 3_600 <= one.oldest_age_s < 3_900
        async with EscalationDesk(kafka_bootstrap, config) as desk:
            whole = await desk.whole((await desk.look()).by_id["a"])
            assert whole is not None
            await desk.answer(whole.question, {"seat": "1A", "row": 1}, "ann")
        (one,) = await watch.look()
        assert one.waiting == 1 and one.oldest_age_s < 300
        shown = metrics.expose()[0].decode()
        assert f'ctxpipe_guard_escalations_waiting{{task="{task}"}} 1.0' in shown
    finally:
        await watch.close()


async def test_a_kafka_that_is_away_is_told_in_time(config: EscalationsConfig) -> None:
    dead = f"127.0.0.1:{choose_port()}"
    short = config.model_copy(update={"put_timeout_s": 1.5})
    async with KafkaEscalations(dead, short) as escalations, HttpClient() as client:
        with pytest.raises(Retryable, match=r"does not answer|did not take the question"):
            await escalations.put(question("q"))
        lost = metrics.guard_escalations_lost.labels("rebook")
        before = lost._value.get()
        asking = guard(client, escalations)
        assert (await asking.call(request())).escalation == "failed"
        in_a_hurry = await asking.call(request(deadline_s=0.5))
        assert in_a_hurry.rung == "escalated" and in_a_hurry.escalation in ("failed", "pending")
        await asking.close()
        assert lost._value.get() == before + 2, "also one whose caller did not wait for it"


async def test_after_an_outage_questions_and_answers_come_through_again(
    make_kafka: Callable[..., KafkaServer], config: EscalationsConfig
) -> None:
    kafka = make_kafka()
    short = config.model_copy(update={"put_timeout_s": 3})
    async with KafkaEscalations(kafka.address, config) as escalations, Answers(kafka.address, config) as answers:
        await escalations.put(question("before"))
        waiting = [asyncio.create_task(answers.wait(name, 120)) for name in ("before", "after")]
        escalations._config = short
        kafka.kill()
        for _ in range(2):
            with pytest.raises(Retryable):
                await escalations.put(question("meanwhile"))
        kafka.start()

        async def put(name: str) -> bool:
            try:
                await escalations.put(question(name))
            except Retryable:
                return False
            return True

        assert await eventually(lambda: put("after"), timeout_s=60)
        async with EscalationDesk(kafka.address, config) as desk:
            standings = await desk.look()
            assert {"before", "after"} <= set(standings.by_id)
            for name in ("before", "after"):
                whole = await desk.whole(standings.by_id[name])
                assert whole is not None
                await desk.answer(whole.question, {"seat": name, "row": 1}, "ann")
        found = await asyncio.gather(*waiting)
        assert [one and one.value["seat"] for one in found] == ["before", "after"]


async def test_a_topic_with_several_partitions_is_refused(kafka_bootstrap: str, config: EscalationsConfig) -> None:
    await make_topic(kafka_bootstrap, config.topic, partitions=3)
    with pytest.raises(EnvironmentProblem, match="3 partitions"):
        await KafkaEscalations(kafka_bootstrap, config).start()


class Receiver:
    """A webhook's other end: answers with the statuses of its script, then 200, and keeps what it took."""

    def __init__(self, *script: int) -> None:
        self.script, self.taken, self.asked = list(script), [], 0
        self.heads: list[tuple[dict[str, str], bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, asked: web.Request) -> web.Response:
        body = await asked.read()
        self.asked += 1
        self.heads.append(({name.lower(): value for name, value in asked.headers.items()}, body))
        await self.gate.wait()
        status = self.script.pop(0) if self.script else 200
        if status == 200:
            self.taken.append(json.loads(body)["id"])
        return web.Response(status=status)


@asynccontextmanager
async def receiving(receiver: Receiver, port: int) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/hook"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def delivering(bootstrap: str, config: EscalationsConfig) -> AsyncIterator[None]:
    assert config.webhook is not None
    async with Webhook(config.webhook) as webhook:
        task = asyncio.create_task(Deliveries(bootstrap, config, webhook).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_the_webhook_gets_each_question_at_least_once_signed(
    kafka_bootstrap: str, config: EscalationsConfig
) -> None:
    """The receiver fails, refuses one for good, is away, and comes back; whoever delivers is ended in between."""
    key = b"0123456789abcdef0123456789abcdef"
    port = choose_port()
    webhook = WebhookConfig(
        url=f"http://127.0.0.1:{port}/hook",
        secret=SecretStr("whsec_" + base64.b64encode(key).decode()),
        delay_s=0.02,
        delay_s_max=0.05,
        refusals_max=2,
    )
    config = config.model_copy(update={"webhook": webhook})
    async with KafkaEscalations(kafka_bootstrap, config) as escalations:
        for name in ("answered", "first", "refused", "later"):
            await escalations.put(question(name))
        async with EscalationDesk(kafka_bootstrap, config) as desk:
            whole = await desk.whole((await desk.look()).by_id["answered"])
            assert whole is not None
            await desk.answer(whole.question, {"seat": "1A", "row": 1}, "ann")
        receiver = Receiver(503, 500, 200, 422, 404)
        async with receiving(receiver, port), delivering(kafka_bootstrap, config):
            await eventually(lambda: receiver.taken == ["first", "later"], timeout_s=60)
        await escalations.put(question("while nobody ran"))
        async with delivering(kafka_bootstrap, config):
            await asyncio.sleep(0.3)
            await escalations.put(question("while it was away"))
            async with receiving(receiver, port):
                wanted = ["first", "later", "while nobody ran", "while it was away"]
                await eventually(lambda: receiver.taken == wanted, timeout_s=60)
    assert receiver.asked == 3 + 2 + 1 + 2, "what was taken was not sent again"
    for head, body in receiver.heads:
        signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert head["webhook-signature"] == f"v1,{expected}"
        assert b"sk-abcdef" not in body


async def test_a_deliverer_that_is_killed_delivers_again(
    kafka_bootstrap: str, config: EscalationsConfig, tmp_path: Path
) -> None:
    """While the receiver has not answered yet; the next one is ended in order, and says so."""
    port = choose_port()
    write_config(tmp_path, kafka_bootstrap, config.topic, f"http://127.0.0.1:{port}/hook")
    async with KafkaEscalations(kafka_bootstrap, config) as escalations:
        await escalations.put(question("q"))
    receiver = Receiver()
    receiver.gate.clear()
    async with receiving(receiver, port):
        first = await started(tmp_path)
        await eventually(lambda: receiver.asked == 1, timeout_s=60)
        first.kill()
        await first.wait()
        receiver.gate.set()
        second = await started(tmp_path)
        await eventually(lambda: receiver.taken.count("q") >= 1 and receiver.asked >= 2, timeout_s=60)
        second.terminate()
        _, told = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 0 and b"escalations: ended" in told and b"Traceback" not in told


async def started(folder: Path) -> asyncio.subprocess.Process:
    words = ["-m", "pipeline.cli", "escalations", "deliver"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=folder, env=environment, stderr=asyncio.subprocess.PIPE
    )


def write_config(folder: Path, bootstrap: str, topic: str, hook: str = "") -> None:
    more = f", webhook: {{url: '{hook}', secret: sixteen characters, delay_s: 0.05}}" if hook else ""
    (folder / "ctxpipe.yaml").write_text(
        f"kafka: {{bootstrap_servers: '{bootstrap}'}}\n"
        "redis: {url: 'redis://127.0.0.1:6379/0'}\n"
        "guard:\n"
        f"  endpoints: [{{name: large, url: '{DEAD}', model: gpt-4o}}]\n"
        "  routes: {'*': {primary: large}}\n"
        f"  escalations: {{topic: {topic}{more}}}\n"
    )


def test_the_commands(kafka_bootstrap: str, config: EscalationsConfig, tmp_path: Path) -> None:
    write_config(tmp_path, kafka_bootstrap, config.topic)

    def command(*words: str) -> Any:
        return ctxpipe("escalations", *words, folder=tmp_path)

    assert command("list").out == "No questions.\n"
    hostile = question(
        "3f1c0000-aaaa", messages=[{"role": "user", "content": "Which seat?\x1b[2J\nSecond line"}], data={"pnr": "X1"}
    )

    async def ask() -> None:
        async with KafkaEscalations(kafka_bootstrap, config) as escalations:
            await escalations.put(hostile)
            await escalations.put(question("3f1c0000-bbbb", task="greet", json_schema=None, output_name="text"))

    asyncio.run(ask())
    assert [one["id"] for one in command("list", "--open", "--json").lines()] == ["3f1c0000-aaaa", "3f1c0000-bbbb"]
    assert [one["task"] for one in command("list", "--task", "greet", "--json").lines()] == ["greet"]
    shown = command("show", "3f1c0000-a").out
    for part in ("Which seat?", "Second line", '"pnr": "X1"', '"required"', "ctxpipe escalations answer 3f1c0000-aaaa"):
        assert part in shown
    assert "\x1b" not in shown and '\'{"seat": "", "row": 0}\'' in shown
    many = command("show", "3f1c")
    assert many.code == 2 and "2 questions begin with 3f1c" in many.err
    assert command("show", "zzz").code == 2
    bad = command("answer", "3f1c0000-a", "--value", '{"seat": "1A"}')
    assert bad.code == 2 and "row" in bad.told()[0]
    for words in (["--value", "{seat: 1}"], [], ["--value", "1", "--text", "x"]):
        assert command("answer", "3f1c0000-a", *words).code == 2
    done = command("answer", "3f1c0000-a", "--value", '{"seat": "1A", "row": 1}', "--by", "ann", "--note", "window")
    assert done.code == 0 and '"row": 1' in done.out
    late = command("answer", "3f1c0000-a", "--value", '{"seat": "2A", "row": 2}', "--by", "bob")
    assert late.code == 1 and "ann was first" in late.err
    assert command("answer", "3f1c0000-b", "--text", "hello", "--json").lines()[0]["counts"] is True
    assert command("list", "--open").out == "No questions.\n"
    listed = command("list").out
    assert "answered" in listed and "ann" in listed and "no route" in listed
    (shown,) = command("show", "3f1c0000-aaaa", "--json").lines()
    assert [(one["by"], one["counts"]) for one in shown["answers"]] == [("ann", True)], "the late one was not written"


def test_what_stands_in_the_way_is_told(tmp_path: Path) -> None:
    port = choose_port()
    (tmp_path / "ctxpipe.yaml").write_text(
        f"kafka: {{bootstrap_servers: '127.0.0.1:{port}'}}\nredis: {{url: 'redis://127.0.0.1:6379/0'}}\n"
    )
    without = ctxpipe("escalations", "list", folder=tmp_path)
    assert without.code == 2 and "'guard' is missing" in without.told()[0]
    with (tmp_path / "ctxpipe.yaml").open("a") as file:
        file.write(f"guard: {{endpoints: [{{name: a, url: '{DEAD}', model: m}}], routes: {{'*': {{primary: a}}}}}}\n")
    away = ctxpipe("escalations", "list", folder=tmp_path)
    assert away.code == 3 and f"127.0.0.1:{port}" in away.told()[0]
    assert ctxpipe("escalations", "deliver", folder=tmp_path).code == 2


async def test_a_question_as_it_is_in_kafka(kafka_bootstrap: str, config: EscalationsConfig) -> None:
    async with KafkaEscalations(kafka_bootstrap, config, Secrets(["configured-key"])) as escalations:
        await escalations.put(question("q", last_output="the key configured-key was refused"))
    async with EscalationDesk(kafka_bootstrap, config) as desk:
        whole = await desk.whole((await desk.look()).by_id["q"])
        assert whole is not None
        assert "configured-key" not in whole.question.last_output
        assert "sk-abcdef" not in whole.question.messages[0]["content"]
    assert len(encode_question(question("q"), Secrets())[1]) < 2_000
