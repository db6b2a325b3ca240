"""Callbacks, free of frameworks: which status, what is taken in, what is told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from callback_skins import BODY, MOST, NOW, TASK, TOKEN, Inbox
from conftest import SAMPLES
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualTimeLoop

from kie_async.callbacks import Receiver, sign_callback
from kie_async.errors import SettingsError
from kie_async.events import CallbackReceived, Event
from kie_async.settings import Secret

pytestmark = pytest.mark.anyio

SIGNED = sign_callback("old", TASK, timestamp=NOW)


def claims(**members: Any) -> bytes:  # a body can be anything
    data = {"callbackType": "complete", "task_id": TASK, "data": [], **members}
    return json.dumps({"code": 200, "msg": "ok", "data": data}).encode()


def pieces(*parts: bytes) -> Callable[[], Awaitable[bytes]]:
    """A body that comes in these pieces."""
    rest = iter(parts)

    async def read() -> bytes:
        return next(rest, b"")

    return read


async def test_a_callback_is_delivered_and_told_once() -> None:
    inbox = Inbox()
    assert await inbox.receiver.handle({}, BODY, TOKEN) == 200
    [(token, event)] = inbox.delivered
    assert (token, event.task_id, event.stage) == (TOKEN, TASK, "complete")
    assert inbox.emitted == [CallbackReceived(TASK, "complete", 200)]


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("callback_*")))
async def test_every_recorded_callback_is_taken(name: str) -> None:
    inbox = Inbox()
    assert await inbox.receiver.handle({}, (SAMPLES / name).read_bytes(), TOKEN) == 200
    assert len(inbox.delivered) == 1


# Each line is one more thing put right: the order of the checks.
FAULTS = [
    ({"content-encoding": "gzip"}, b"{" * (MOST + 1), "?", 413, "the body is too large"),
    ({"content-encoding": "gzip"}, b"{" * MOST, "?", 415, "the body is compressed"),
    ({"content-encoding": "identity"}, b"{" * MOST, "?", 404, "no token in the path"),
    ({}, b"{" * MOST, TOKEN, 400, "the callback is no JSON object that can be read in one way only"),
    ({}, BODY, TOKEN, 401, "no signature headers"),
    (dict(SIGNED) | {"X-Webhook-Timestamp": "1e9"}, BODY, TOKEN, 400, "malformed timestamp"),
    (sign_callback("old", TASK, timestamp=NOW - 600), BODY, TOKEN, 401, "clock skew 600 s"),
    (sign_callback("old", TASK, timestamp=NOW + 600), BODY, TOKEN, 401, "clock skew 600 s"),
    (sign_callback("old", TASK, timestamp=NOW + 1) | {"X-Webhook-Timestamp": str(NOW)}, BODY, TOKEN, 401, "wrong"),
]


@pytest.mark.parametrize(("headers", "body", "token", "status", "note"), FAULTS)
async def test_what_is_refused_changes_nothing(
    headers: dict[str, str], body: bytes, token: str, status: int, note: str
) -> None:
    inbox = Inbox("old")
    assert await inbox.receiver.handle(headers, body, token) == status
    assert inbox.delivered == []
    [emitted] = inbox.emitted
    assert (emitted.task_id, emitted.stage, emitted.status) == ("", "", status)
    assert note in emitted.note


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
async def test_identity_is_no_encoding(encoding: str) -> None:
    assert await Inbox().receiver.handle({"Content-Encoding": encoding}, BODY, TOKEN) == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"5", b"{}", b"\xff\xfe", b"a=b&c=d", b"--x\r\n\r\n--x--", b'{"data":null}',
        b'{"data":{"task_id":7}}', b'{"data":{"task_id":""}}', b"[" * 10_000, b"9" * 10_000, b"NaN",
        claims(task_id=f"{TASK}.{NOW}"), claims(task_id=f"{TASK}\n"), claims(task_id="x" * 129),
        claims(taskId="another"), b'{"data":{"task_id":"a","task_id":"b"}}', b'{"task_id":"a","data":{"task_id":"b"}}',
        BODY.replace(b'"code":200', b'"data":{"task_id":"other"}'),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_read_in_one_way_only(body: bytes) -> None:
    inbox = Inbox()
    assert await inbox.receiver.handle({}, body, TOKEN) == 400
    assert inbox.delivered == []


@pytest.mark.parametrize("token", ["", "x" * 15, "x" * 129, "x" * 20 + "\n", "x" * 20 + "/", "é" * 20, "x" * 20 + "."])
async def test_a_path_without_a_token(token: str) -> None:
    assert await Inbox().receiver.handle({}, BODY, token) == 404


@pytest.mark.parametrize("token", ["x" * 16, "x" * 128, "_-" * 10])
async def test_a_token_of_any_session_is_answered(token: str) -> None:
    assert await Inbox().receiver.handle({}, BODY, token) == 200


async def test_unknown_words_and_missing_members_still_wake() -> None:
    inbox = Inbox()
    for body in (
        claims(callbackType="newer", odd=[1]),
        b'{"task_id":"t"}',
        b'{"data":{"taskId":"t","data":"no list"}}',
    ):
        assert await inbox.receiver.handle({}, body, TOKEN) == 200
    assert [event.stage for _, event in inbox.delivered] == ["newer", "", ""]


async def test_names_of_headers_in_any_case() -> None:
    for change in (str.upper, str.lower, str.title):
        headers = {change(name): value for name, value in SIGNED.items()}
        assert await Inbox("old").receiver.handle(headers, BODY, TOKEN) == 200


async def test_a_doubled_header_is_refused_whichever_was_meant() -> None:
    for name, status in (("X-Webhook-Signature", 401), ("X-Webhook-Timestamp", 400)):
        for double in ([(name, "1"), *SIGNED.items()], [*SIGNED.items(), (name.lower(), "1")]):
            assert await Inbox("old").receiver.receive("POST", double, TOKEN, pieces(BODY)) == status
    for encodings in (("identity", "gzip"), ("gzip", "identity")):
        double = [("Content-Encoding", encodings[0]), ("content-encoding", encodings[1])]
        assert await Inbox().receiver.receive("POST", double, TOKEN, pieces(BODY)) == 415


async def test_a_replay_is_answered_and_only_wakes() -> None:
    inbox = Inbox("old")
    assert [await inbox.receiver.handle(SIGNED, BODY, TOKEN) for _ in range(3)] == [200, 200, 200]
    assert inbox.delivered == [inbox.delivered[0]] * 3  # which the session takes as one and the same hint


async def test_a_swapped_body_is_passed_on_as_claims_of_the_signed_task_only() -> None:
    inbox = Inbox("old")
    assert await inbox.receiver.handle(SIGNED, claims(callbackType="error"), TOKEN) == 200
    assert await inbox.receiver.handle(SIGNED, claims(task_id="another"), TOKEN) == 401
    assert [event.task_id for _, event in inbox.delivered] == [TASK]


async def test_keys_rotate_while_it_runs() -> None:
    inbox = Inbox("old")
    new = sign_callback("new", TASK, timestamp=NOW)

    async def both() -> list[int]:
        return [await inbox.receiver.handle(headers, BODY, TOKEN) for headers in (SIGNED, new)]

    assert await both() == [200, 401]
    inbox.receiver.keys = (Secret("new"), Secret("old"))
    assert await both() == [200, 200]
    inbox.receiver.keys = (Secret("new"),)
    assert await both() == [401, 200]


async def test_an_empty_key_is_no_key() -> None:
    with pytest.raises(SettingsError, match="webhook_key is empty"):
        Inbox("old", "")


async def test_signatures_are_held_against_this_clock_by_default() -> None:
    async def deliver(_token: str, _event: object) -> str:
        return ""

    emitted: list[Event] = []
    receiver = Receiver((Secret("old"),), deliver, emitted.append)
    assert await receiver.handle(sign_callback("old", TASK), BODY, TOKEN) == 200
    assert await receiver.handle(sign_callback("old", TASK, timestamp=1), BODY, TOKEN) == 401


async def test_why_it_was_set_aside_is_told() -> None:
    inbox = Inbox()

    async def foreign() -> str:
        return f"unknown token {TOKEN}\nat https://me.example/kie/{TOKEN}?x=1"

    inbox.answer = foreign
    assert await inbox.receiver.handle({}, BODY, TOKEN) == 200
    assert inbox.emitted == [CallbackReceived(TASK, "complete", 200, "unknown token …�at https://me.example/…")]


async def test_what_cannot_be_stored_is_to_be_sent_again() -> None:
    inbox = Inbox()

    async def fail() -> str:
        raise RuntimeError(f"disk full: no room for {TOKEN!r}")

    inbox.answer = fail
    assert await inbox.receiver.handle({}, BODY, TOKEN) == 503
    inbox.answer = inbox.accept
    assert await inbox.receiver.handle({}, BODY, TOKEN) == 200
    assert inbox.emitted == [
        CallbackReceived(TASK, "complete", 503, "not delivered: RuntimeError: disk full: no room for '…'"),
        CallbackReceived(TASK, "complete", 200),
    ]


async def test_a_delivery_that_hangs_is_given_up_before_the_service_gives_up(clock: VirtualTimeLoop) -> None:
    inbox = Inbox()
    inbox.answer = inbox.hang
    start = clock.time()
    assert await inbox.receiver.handle({}, BODY, TOKEN) == 503
    assert 10 <= clock.time() - start < 11


async def test_cancelled_it_answers_nothing(clock: VirtualTimeLoop) -> None:
    inbox = Inbox()
    inbox.answer = inbox.hang
    start = clock.time()
    with anyio.move_on_after(1) as scope:
        await inbox.receiver.handle({}, BODY, TOKEN)
    assert scope.cancelled_caught
    assert clock.time() - start < 2
    assert inbox.emitted == []


async def test_an_observer_that_fails_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def emit(_event: Event) -> None:
        raise ValueError("observer")

    receiver = Receiver((), Inbox().deliver, emit)
    assert await receiver.handle({}, BODY, TOKEN) == 200
    assert "the observer failed" in caplog.text


async def test_no_log_line_can_be_forged() -> None:
    inbox = Inbox()
    stage = "x\n2026-01-01 ERROR forged \x1b[31m \u202e \0 \u2028" + "y" * 10_000 + TOKEN
    assert await inbox.receiver.handle({}, claims(callbackType=stage), TOKEN) == 200
    [emitted] = inbox.emitted
    assert emitted.stage.isprintable()
    assert len(emitted.stage) < 600


# ---------------------------------------------------------------- bodies that are still to be read


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "post", ""])
async def test_only_post(method: str) -> None:
    inbox = Inbox()
    assert await inbox.receiver.receive(method, [], TOKEN, pieces(BODY)) == 405
    assert [emitted.status for emitted in inbox.emitted] == [405]


async def test_a_body_in_pieces() -> None:
    inbox = Inbox()
    read = pieces(*(BODY[i : i + 1] for i in range(len(BODY))))
    assert await inbox.receiver.receive("POST", [], TOKEN, read) == 200
    assert len(inbox.delivered) == 1


async def test_the_largest_body() -> None:
    largest = claims(padding="x" * (MOST - len(claims(padding=""))))
    assert len(largest) == MOST
    half = MOST // 2
    assert await Inbox().receiver.receive("POST", [], TOKEN, pieces(largest[:half], largest[half:])) == 200
    assert await Inbox().receiver.receive("POST", [], TOKEN, pieces(largest[:half], largest[half:], b" ")) == 413


@pytest.mark.parametrize("length", [None, "0", "12", "-1", "abc", "9" * 5000, "１"])  # noqa: RUF001
async def test_a_lying_length_does_not_matter(length: str | None) -> None:
    inbox = Inbox()
    read = 0

    async def endless() -> bytes:
        nonlocal read
        read += 1024
        return b"x" * 1024

    headers = [] if length is None else [("Content-Length", length)]
    assert await inbox.receiver.receive("POST", headers, TOKEN, endless) == 413
    assert read == MOST + 1024
    assert [emitted.status for emitted in inbox.emitted] == [413]


@pytest.mark.parametrize(
    ("headers", "token", "status"),
    [
        ([("Content-Length", str(MOST + 1))], TOKEN, 413),
        ([("Content-Length", "9" * 18)], TOKEN, 413),
        ([("Content-Encoding", "gzip")], TOKEN, 415),
        ([("Content-Encoding", "identity"), ("content-encoding", "gzip")], TOKEN, 415),
        ([], "short", 404),
    ],
)
async def test_what_is_refused_by_its_head_is_not_read(headers: list[tuple[str, str]], token: str, status: int) -> None:
    async def read() -> bytes:
        raise AssertionError("read")

    assert await Inbox().receiver.receive("POST", headers, token, read) == status


async def test_a_body_that_is_too_slow(clock: VirtualTimeLoop) -> None:
    inbox = Inbox()

    async def drip() -> bytes:
        await anyio.sleep(0.5)
        return b" "

    start = clock.time()
    assert await inbox.receiver.receive("POST", [], TOKEN, drip) == 408
    assert 10 <= clock.time() - start < 11
    assert [(emitted.status, emitted.note) for emitted in inbox.emitted] == [(408, "the body came too slowly")]


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), OSError(5, "")])
async def test_a_body_that_breaks_off(error: OSError) -> None:
    inbox = Inbox()

    async def read() -> bytes:
        raise error

    assert await inbox.receiver.receive("POST", [], TOKEN, read) == 400
    assert [(emitted.status, emitted.note) for emitted in inbox.emitted] == [(400, "the body broke off")]


# ---------------------------------------------------------------- anything whatever

ANY_TEXT = st.text(st.characters(exclude_categories=[]))
NAMES = st.sampled_from(["X-Webhook-Timestamp", "X-Webhook-Signature", "Content-Length", "content-encoding"]) | ANY_TEXT
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
    max_leaves=10,
)
MEMBERS = ("msg", "task_id", "callbackType", "data")
BODIES = (
    st.binary()
    | st.builds(lambda value: json.dumps(value).encode(), JSON)
    | st.builds(
        lambda *values: json.dumps({"code": values[0], "data": dict(zip(MEMBERS, values, strict=True))}).encode(),
        JSON, st.just(TASK) | JSON, st.sampled_from(["text", "first", "complete", "error"]) | JSON, JSON,
    )
)  # fmt: skip


@given(st.lists(st.tuples(NAMES, ANY_TEXT)), BODIES, st.just(TOKEN) | ANY_TEXT, st.data())
async def test_any_bytes_and_any_headers_end_in_a_status(
    headers: list[tuple[str, str]],
    body: bytes,
    token: str,
    data: st.DataObject,
) -> None:
    inbox = Inbox("old") if data.draw(st.booleans()) else Inbox()
    headers = headers + list(SIGNED.items()) if data.draw(st.booleans()) else headers
    cut = data.draw(st.integers(0, len(body)))
    statuses = [
        await inbox.receiver.handle(dict(headers), body, token),
        await inbox.receiver.receive("POST", headers, token, pieces(*filter(None, (body[:cut], body[cut:])))),
    ]
    assert set(statuses) <= {200, 400, 401, 404, 413, 415}
    assert [emitted.status for emitted in inbox.emitted] == statuses
    assert len(inbox.delivered) == statuses.count(200)
    for emitted in inbox.emitted:
        assert TOKEN not in repr(emitted)
        assert (emitted.task_id + emitted.stage + emitted.note).isprintable()
