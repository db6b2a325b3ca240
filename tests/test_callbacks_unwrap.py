"""Callbacks that were received by other means: what is taken, and what each fault raises."""

from __future__ import annotations

import inspect
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from callback_skins import BODY, MOST, TASK
from conftest import SAMPLES
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from starlette.datastructures import Headers

import kie_async as kie
from kie_async.callbacks import sign_callback, unwrap

KEY = "hook-5f1c"


def signed(age: int = 0, key: str = KEY) -> dict[str, str]:
    return sign_callback(key, TASK, timestamp=int(time.time()) - age)


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("callback_*")), ids=lambda path: path.stem)
def test_the_bodies_of_the_service(path: Path) -> None:
    body = path.read_bytes()
    event = unwrap(body.decode(), {}, key=None)
    assert unwrap(body, sign_callback(KEY, event.task_id), key=KEY) == event
    assert event.stage in {"text", "first", "complete", "error"}


@pytest.mark.parametrize("kind", [dict, CIMultiDict, Headers])
@pytest.mark.parametrize("change", [str, str.lower, str.upper])
def test_headers_of_any_kind(kind: Callable[[dict[str, str]], Mapping[str, str]], change: Callable[[str], str]) -> None:
    headers = kind({change(name): value for name, value in signed().items()} | {"Content-Type": "text/plain"})
    assert unwrap(BODY, headers, key=KEY).task_id == TASK


@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview, bytes.decode])
def test_bodies_of_any_kind(convert: Callable[[bytes], Any]) -> None:
    assert unwrap(convert(BODY), signed(), key=KEY).task_id == TASK


@pytest.mark.parametrize(
    "keys", [KEY, kie.Secret(KEY), [KEY], ("new", KEY), (kie.Secret(KEY), "new"), iter(["new", KEY])]
)
def test_any_of_the_keys_may_have_signed(keys: Any) -> None:
    assert unwrap(BODY, signed(), key=keys).task_id == TASK


STAMP, SIGNATURE = "X-Webhook-Timestamp", "X-Webhook-Signature"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _good: {}, "no signature headers: pass on all headers"),
        (lambda good: {STAMP: good[STAMP]}, "no signature headers"),
        (lambda good: {**good, STAMP: "1e9"}, "malformed timestamp"),
        (lambda _good: signed(age=400), r"clock skew \d+ s: set this machine's clock"),
        (lambda _good: signed(age=-4000), r"clock skew \d+ s"),
        (lambda _good: signed(key="another"), "wrong signature: check that the key"),
        (lambda good: {**good, SIGNATURE: "é\udcff"}, "wrong signature"),
        (lambda good: CIMultiDict([*good.items(), (SIGNATURE, good[SIGNATURE])]), "wrong signature"),
        (lambda good: CIMultiDict([*good.items(), (STAMP, good[STAMP])]), "malformed timestamp"),
    ],
)
def test_a_signature_that_is_not_the_services(
    change: Callable[[dict[str, str]], Mapping[str, str]], words: str
) -> None:
    headers = change(signed())
    with pytest.raises(kie.SignatureError, match=words) as caught:
        unwrap(BODY, headers, key=KEY)
    assert KEY not in str(caught.value)
    assert unwrap(BODY, headers, key=None).task_id == TASK


def test_the_signature_is_of_one_task() -> None:
    with pytest.raises(kie.SignatureError, match="wrong signature"):
        unwrap(BODY.replace(b"5c79", b"5c78"), signed(), key=KEY)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", "nonsense", b"\xff", "\udcff", b'{"data":{"task_id":"a1","taskId":"a2"}}',
        b'{"data":{"task_id":"a1","task_id":"a2"}}', BODY + b" " * MOST,
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", [None, KEY])
def test_a_body_that_is_no_callback(body: bytes | str, key: str | None) -> None:
    with pytest.raises(kie.BadResponseError, match="callback"):
        unwrap(body, signed(), key=key)


@pytest.mark.parametrize("key", ["", kie.Secret(""), [], (KEY, ""), iter([])])
def test_an_empty_key_is_none_at_all(key: Any) -> None:
    with pytest.raises(kie.SettingsError, match="key is empty: give the account's webhook key, or None"):
        unwrap(BODY, sign_callback(KEY, TASK), key=key)


@pytest.mark.parametrize("body", [{"data": {"task_id": TASK}}, None, 5])
def test_a_body_that_was_parsed_already(body: Any) -> None:
    with pytest.raises(TypeError, match=f"body is {type(body).__name__}: give the bytes or the text"):
        unwrap(body, signed(), key=KEY)


@given(st.binary() | st.text(st.characters(exclude_categories=[])), st.dictionaries(st.text(), st.text()))
def test_whatever_comes_only_its_own_errors_are_raised(body: bytes | str, headers: dict[str, str]) -> None:
    for sent in (body, BODY):
        with pytest.raises((kie.BadResponseError, kie.SignatureError)):
            unwrap(sent, headers, key=KEY)


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KIE_WEBHOOK_KEY", KEY)
    code = textwrap.dedent(inspect.cleandoc(unwrap.__doc__ or "").partition("::\n\n")[2].partition("\n\nArgs:")[0])
    names: dict[str, Any] = {}
    exec("import os; from collections.abc import Mapping; import kie_async as kie\n" + code, names)  # noqa: S102  # ours
    answer = names["answer"]
    assert [answer(BODY, signed()), answer(BODY, {}), answer(b"null", signed())] == [200, 401, 400]
    assert capsys.readouterr().out == f"{TASK} complete\n"
