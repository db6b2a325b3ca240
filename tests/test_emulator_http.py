"""The emulator over real sockets: routes, refusals, faults of an exchange."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import Iterator

import aiohttp
import anyio
import pytest
from emulator_client import EXTEND, JOB, Client, emulated
from virtual_time import VirtualTimeLoop

import kie_async as kie
from kie_async.emulator import Fault, Rules, serve

pytestmark = pytest.mark.anyio

CREDIT = "/api/v1/chat/credit"


@pytest.fixture(autouse=True)
def _nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# ---------------------------------------------------------------- serving


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "kie.example"])  # noqa: S104  # it is refused
async def test_it_serves_on_loopback_only(host: str) -> None:
    with pytest.raises(ValueError, match="on loopback only"):
        async with serve(host=host):
            pass


async def test_it_serves_on_ipv6_as_well() -> None:
    async with emulated(host="::1") as client:
        assert client.emulator.base_url.startswith("http://[::1]:")
        assert (await client.get(CREDIT))["data"] == 1000.0


async def test_it_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with emulated() as client:
        await client.extend()
    await asyncio.sleep(1)
    assert asyncio.all_tasks() == before
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession() as http:
            await http.get(client.emulator.base_url)


async def test_an_error_in_the_block_comes_out_as_itself() -> None:
    with pytest.raises(RuntimeError, match="mine"):
        async with serve():
            raise RuntimeError("mine")


async def test_two_with_one_seed_are_alike() -> None:
    ids = []
    for seed in (1, 1, 2):
        async with emulated(seed=seed) as client:
            ids.append((await client.extend())["data"]["taskId"])
    assert ids[0] == ids[1] != ids[2]


# ---------------------------------------------------------------- keys and refusals


@pytest.mark.parametrize(
    ("header", "code"),
    [("Bearer right", 200), ("Bearer wrong", 401), ("right", 401), ("Basic right", 401), ("Bearer ", 401), ("", 401)],
)
async def test_the_key_is_checked_if_one_is_set(header: str, code: int) -> None:
    async with serve(key="right") as emulator, aiohttp.ClientSession() as http:
        assert emulator.key == "right"
        async with http.get(emulator.base_url + CREDIT, headers={"Authorization": header}) as answer:
            assert (answer.status, (await answer.json())["code"]) == (200, code)


@pytest.mark.parametrize(
    ("key", "taken", "refused"),
    [
        (None, ["emulated-account-1", "emulated-account-27"], ["whatever", "emulated-account-", "emulated-account-0x"]),
        ("mine", ["mine"], ["emulated-account-1", "Mine", "mine2"]),
        (["mine", "yours"], ["mine", "yours"], ["emulated-account-1"]),
    ],
)
async def test_only_keys_that_it_gave_are_taken(
    key: str | list[str] | None, taken: list[str], refused: list[str]
) -> None:
    async with serve(key=key) as emulator, aiohttp.ClientSession() as http:
        assert emulator.key == taken[0]
        for each in taken + refused:
            async with http.get(emulator.base_url + CREDIT, headers={"Authorization": f"Bearer {each}"}) as answer:
                assert (each, answer.status) == (each, 200)
                assert (await answer.json())["code"] == (200 if each in taken else 401)


@pytest.mark.parametrize("key", ["", ["good", ""], "two words", "kéy", 'k"k', "line\n"])
async def test_a_key_that_no_client_could_send(key: str | list[str]) -> None:
    with pytest.raises(ValueError, match="a key is empty, or holds spaces, quotes"):
        async with serve(key=key):
            pytest.fail("it serves")


ROUTES = [
    ("POST", "/api/v1/generate/extend"), ("POST", "/api/v1/generate/upload-extend"),
    ("POST", "/api/v1/jobs/createTask"), ("POST", "/api/v1/common/download-url"),
    ("POST", "/api/file-stream-upload"), ("POST", "/api/file-base64-upload"), ("POST", "/api/file-url-upload"),
    ("GET", "/api/v1/generate/record-info?taskId=x"), ("GET", "/api/v1/jobs/recordInfo?taskId=x"), ("GET", CREDIT),
]  # fmt: skip


async def test_a_wrong_key_is_refused_on_every_route_as_the_service_does() -> None:
    async with serve() as emulator, aiohttp.ClientSession(headers={"Authorization": "Bearer wrong"}) as http:
        for method, path in ROUTES:
            async with http.request(method, emulator.base_url + path, json=EXTEND) as answer:
                assert (path, answer.status) == (path, 200)
                assert await answer.json() == {"code": 401, "msg": "You do not have access permissions", "data": None}
        for _ in range(30):
            async with http.post(emulator.base_url + "/api/v1/generate/extend", json=EXTEND) as answer:
                assert (await answer.json())["code"] == 401
        headers = {"Authorization": f"Bearer {emulator.key}"}  # whose quota they have not used
        async with http.post(emulator.base_url + "/api/v1/generate/extend", json=EXTEND, headers=headers) as answer:
            assert (await answer.json())["code"] == 200


async def test_a_program_can_be_tried_with_a_wrong_key() -> None:
    async with serve() as emulator:
        settings = kie.Settings(api_key="mistyped", base_url=emulator.base_url)
        async with kie.KieSession(settings) as session:
            with pytest.raises(kie.AuthError, match="access permissions") as caught:
                await session.extend("a1", model="V5")
        assert (caught.value.code, caught.value.charged) == (401, "no")
        assert emulator.ledger == []


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1:{port}", "127.8.9.1:1", "localhost", "LocalHost:{port}", "[::1]", "[::1]:{port}",
        "localhost:",
    ],
)  # fmt: skip
async def test_names_of_this_machine(host: str) -> None:
    async with emulated() as client:
        host = host.format(port=client.emulator.base_url.rpartition(":")[2])
        async with client.http.get(client.url(CREDIT), headers={"Host": host}) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "me@localhost",
        "evil.example@127.0.0.1", "localhost/evil.example", "127.0.0.1#evil", "192.0.2.1", "0.0.0.0", "[::]",  # noqa: S104  # no binding
        "[2001:db8::1]", "::1", "[::1", "localhost:80:80", "localhost:x", "", "local host", "evil.example, localhost",
    ],
)  # fmt: skip
async def test_under_any_other_name_it_answers_nothing(host: str) -> None:
    """The name of a page in a browser can be made to lead here: it must not get through to loopback by this server."""
    async with emulated() as client:
        address = client.emulator.base_url.removeprefix("http://")
        host = host.format(port=address.rpartition(":")[2])
        for method, path in [*ROUTES, ("GET", "/files/x"), ("GET", "/nothing"), ("OPTIONS", CREDIT)]:
            head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
            head += f"Authorization: Bearer {client.emulator.key}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            answer = await exchange(address, head.encode())
            assert answer.split()[1] in {b"403", b"400"}, answer
            assert b"access-control" not in answer.lower()


@pytest.mark.parametrize("hosts", [[], ["localhost", "evil.example"], ["evil.example", "localhost"]])
async def test_no_host_or_two(hosts: list[str]) -> None:
    async with emulated() as client:
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        head = f"GET {CREDIT} HTTP/1.0\r\n{lines}Authorization: Bearer {client.emulator.key}\r\n\r\n"
        answer = await exchange(client.emulator.base_url.removeprefix("http://"), head.encode())
        assert answer.split()[1] in {b"403", b"400"}


async def exchange(address: str, request: bytes) -> bytes:
    """Send bytes, and return all that comes back."""
    host, _, port = address.rpartition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(request)
        return b"".join([piece async for piece in stream])


async def test_no_page_of_another_origin_may_read() -> None:
    async with emulated() as client:
        asking = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        for method, path in [*ROUTES, ("OPTIONS", CREDIT), ("GET", "/files/x")]:
            async with client.http.request(method, client.url(path), headers=asking) as answer:
                assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_a_submission_with_a_wrong_key_is_noted_but_neither_made_nor_charged() -> None:
    async with emulated(key="right") as client:
        headers = {"Authorization": "Bearer wrong"}
        async with client.http.post(client.url("/api/v1/generate/extend"), json=EXTEND, headers=headers) as answer:
            assert (await answer.json())["code"] == 401
        assert [arrival.code for arrival in client.emulator.arrivals] == [401]
        assert client.emulator.ledger == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize(
    "path", ["/api/v1/generate/extend", "/api/v1/generate/upload-extend", "/api/v1/jobs/createTask"]
)
async def test_a_body_that_is_no_json_object_is_refused(path: str, body: bytes) -> None:
    async with emulated() as client, client.http.post(client.url(path), data=body) as answer:
        assert (await answer.json())["code"] == 422
        assert [arrival.code for arrival in client.emulator.arrivals] == [422]


async def test_a_model_that_is_unknown_is_refused_on_both_routes() -> None:
    async with emulated() as client:
        assert (await client.extend(model="V99"))["code"] == 422
        assert (await client.job(model="ai-music-api/other"))["code"] == 422
        assert (await client.job(input={**JOB["input"], "model": "V99"}))["code"] == 422
        assert client.emulator.ledger == []


async def test_the_ledger_says_what_was_paid_for() -> None:
    async with emulated() as client:
        first = await client.extend()
        second = await client.job(callBackUrl="https://example.com/x")
        classic, jobs = client.emulator.ledger
        assert (classic.task_id, jobs.task_id) == (first["data"]["taskId"], second["data"]["taskId"])
        assert (classic.route, classic.operation, classic.body) == ("classic", "extend", EXTEND)
        assert (jobs.route, jobs.callback_url) == ("jobs", "https://example.com/x")
        assert jobs.at >= classic.at
        assert client.emulator.credits == 1000.0 - 24
        assert (await client.get(CREDIT))["data"] == 1000.0 - 24
        client.emulator.top_up(24)
        assert client.emulator.credits == 1000.0
        assert client.emulator.task(classic.task_id).charge is classic


async def test_a_burst_is_let_in_up_to_the_quota_and_again_after_the_window(clock: VirtualTimeLoop) -> None:
    async with emulated() as client:
        codes = []
        for _ in range(22):
            codes.append((await client.extend())["code"])
            clock.advance(0.01)
        assert codes == [200] * 20 + [429] * 2
        clock.advance(10)
        assert (await client.extend())["code"] == 200
        assert len(client.emulator.ledger) == 21
        assert client.emulator.max_in_window() == 22
        assert client.emulator.max_in_window(0.1) in {10, 11}


async def test_a_smaller_quota_can_be_set() -> None:
    async with emulated(rules=Rules(quota=1, window=60.0)) as client:
        assert [(await client.extend())["code"] for _ in range(2)] == [200, 429]


# ---------------------------------------------------------------- faults of an exchange


@pytest.mark.parametrize(
    ("kind", "error"), [("lost", aiohttp.ServerDisconnectedError), ("reset", aiohttp.ClientOSError)]
)
async def test_an_answer_is_lost_after_the_charge(kind: str, error: type[Exception]) -> None:
    async with emulated(faults=[Fault(kind, nth=1)]) as client:
        with pytest.raises(error):
            await client.extend()
        assert len(client.emulator.ledger) == 1
        assert client.emulator.credits == 988.0
        task_id = client.emulator.ledger[0].task_id
        assert (await client.record(task_id))["data"]["status"] == "PENDING"
        assert (await client.extend())["code"] == 200


@pytest.mark.parametrize("fault", [Fault("drop", nth=1), Fault("reset", nth=1, done=False)])
async def test_a_connection_is_closed_before_anything_is_done(fault: Fault) -> None:
    async with emulated(faults=[fault]) as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.extend()
        assert client.emulator.ledger == []
        assert [arrival.code for arrival in client.emulator.arrivals] == [None]


async def test_a_close_is_a_close_and_no_reset_even_if_nobody_has_read_the_body() -> None:
    async with emulated(faults=[Fault("drop")]) as client:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.extend(prompt="x" * 400_000)
        assert client.emulator.ledger == []


@pytest.mark.parametrize(("done", "charges"), [(None, 0), (True, 1)])
async def test_a_proxy_answers_with_a_page_of_its_own(done: bool | None, charges: int) -> None:  # noqa: FBT001  # a parameter
    async with emulated(faults=[Fault("html", status=503, done=done)]) as client:
        async with client.http.post(client.url("/api/v1/generate/extend"), json=EXTEND) as answer:
            assert (answer.status, answer.content_type) == (503, "text/html")
            assert "503 Bad Gateway" in await answer.text()
        assert len(client.emulator.ledger) == charges


@pytest.mark.parametrize("code", [429, 430, 455, 500, 402, 401, 599, "200", "430"])
async def test_any_body_code_can_be_answered(code: int | str) -> None:
    async with emulated(faults=[Fault("code", code=code)]) as client:
        answer = await client.extend()
        assert (answer["code"], answer["data"]) == (code, None)
        assert client.emulator.ledger == []


async def test_a_code_can_come_with_words_and_a_status_of_its_own_and_after_the_charge() -> None:
    fault = Fault("code", message="Too many", status=429, done=True)
    async with emulated(faults=[fault]) as client:
        async with client.http.post(client.url("/api/v1/generate/extend"), json=EXTEND) as answer:
            assert answer.status == 429
            assert (await answer.json()) == {"code": 500, "msg": "Too many", "data": None}
        assert len(client.emulator.ledger) == 1


async def test_any_bytes_can_be_answered() -> None:
    async with emulated(faults=[Fault("answer", "credits", body=b"null", status=201)]) as client:
        status, body, _ = await client.read(CREDIT)
        assert (status, body) == (201, b"null")
    async with emulated(faults=[Fault("answer", "credits", nth=2)]) as client:
        assert (await client.get(CREDIT))["code"] == 200
        assert (await client.read(CREDIT))[:2] == (200, b"")


async def test_a_redirect_leads_elsewhere() -> None:
    fault = Fault("redirect", "credits", url="http://127.0.0.1:9/x")
    async with (
        emulated(faults=[fault]) as client,
        client.http.get(client.url(CREDIT), allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["Location"]) == (307, "http://127.0.0.1:9/x")


@pytest.mark.parametrize(("done", "charges"), [(True, 1), (False, 0)])
async def test_an_answer_is_slow(done: bool, charges: int, clock: VirtualTimeLoop) -> None:  # noqa: FBT001  # a parameter
    async with emulated(faults=[Fault("slow", seconds=50.0, done=done)]) as client:
        start = clock.time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.extend(), 20)
        assert 20 <= clock.time() - start < 25
        assert len(client.emulator.ledger) == charges


@pytest.mark.parametrize("kind", ["lost", "reset", "no_length", "truncated"])
async def test_a_client_that_has_gone_meanwhile_is_no_error(kind: str) -> None:
    faults = [Fault("slow", "download", seconds=20.0), Fault(kind, "download")]
    async with emulated(faults=faults) as client:
        url = await client.post("/api/file-base64-upload", {"base64Data": "aGVsbG8=", "fileName": "x.mp3"})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.read(url["data"]["downloadUrl"]), 10)
        await asyncio.sleep(30)


async def test_a_slow_answer_comes_in_the_end(clock: VirtualTimeLoop) -> None:
    async with emulated(faults=[Fault("slow", done=False)]) as client:
        start = clock.time()
        assert (await client.extend())["code"] == 200
        assert 5 <= clock.time() - start < 6


async def test_an_answer_drips(clock: VirtualTimeLoop) -> None:
    async with emulated(faults=[Fault("drip", "credits")]) as client:
        start = clock.time()
        body = (await client.read(CREDIT))[1]
        assert clock.time() - start == pytest.approx((len(body) - 1) * 0.4, abs=0.001)


async def broken(client: Client) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.extend()


async def test_an_answer_is_cut_off_but_charged() -> None:
    async with emulated(faults=[Fault("truncated")]) as client:
        await broken(client)
        assert len(client.emulator.ledger) == 1


@pytest.mark.parametrize("kind", ["garbage", "malformed"])
async def test_an_answer_is_no_json(kind: str) -> None:
    async with emulated(faults=[Fault(kind)]) as client:
        with pytest.raises(ValueError, match=r"decode|delimiter"):
            await client.extend()
        assert len(client.emulator.ledger) == 1


async def test_an_answer_is_huge() -> None:
    async with emulated(faults=[Fault("huge", "credits", size=200_001)]) as client:
        assert (await client.read(CREDIT))[1] == b" " * 200_001


async def test_an_answer_is_small_and_unpacks_to_much() -> None:
    async with (
        emulated(faults=[Fault("gzip_bomb", "credits", size=5_000_000)]) as client,
        aiohttp.ClientSession(auto_decompress=False, headers=client.http.headers) as http,
        http.get(client.url(CREDIT)) as answer,
    ):
        packed = await answer.read()
    assert len(packed) < 50_000
    assert len(gzip.decompress(packed)) == 5_000_000


async def test_faults_add_up_in_their_order_until_the_answer_is_gone(clock: VirtualTimeLoop) -> None:
    faults = [Fault("slow", seconds=7.0), Fault("truncated"), Fault("html", done=True)]
    async with emulated(faults=faults) as client:
        start = clock.time()
        await broken(client)
        assert clock.time() - start >= 7


async def test_faults_of_a_look_concern_that_look_alone(clock: VirtualTimeLoop) -> None:
    faults = [Fault("invisible", "record_info", nth=2), Fault("backwards", nth=3), Fault("unknown_word", nth=4)]
    async with emulated(timeline=(1.0, 2.0, 3.0), faults=faults) as client:
        task_id = (await client.extend())["data"]["taskId"]
        clock.advance(3)
        seen = [(await client.record(task_id))["data"] for _ in range(5)]
        assert [each and each["status"] for each in seen] == ["SUCCESS", None, "PENDING", "MIXING", "SUCCESS"]
        assert client.emulator.polls(task_id) == 5
        client.emulator.faults.add(Fault("backwards"))
        assert (await client.record("nobody"))["data"] is None


async def test_a_fault_can_be_of_one_task(clock: VirtualTimeLoop) -> None:
    async with emulated(timeline=(1.0, 2.0, 3.0)) as client:
        one, other = [(await client.extend())["data"]["taskId"] for _ in range(2)]
        client.emulator.faults.add(Fault("backwards", task_id=one))
        clock.advance(3)
        assert (await client.record(one))["data"]["status"] == "PENDING"
        assert (await client.record(other))["data"]["status"] == "SUCCESS"


async def test_a_thousand_tasks_end_and_all_of_them_are_cheap(clock: VirtualTimeLoop) -> None:
    async with emulated(credits=1e6, rules=Rules(quota=10_000)) as client:
        tasks = [(await client.extend())["data"]["taskId"] for _ in range(1000)]
        assert len(asyncio.all_tasks()) < 12
        start = clock.time()
        await client.emulator.wait_finished()
        assert 100 < clock.time() - start <= 141
        assert (await client.record(tasks[-1]))["data"]["status"] == "SUCCESS"
