"""The list of the Standard Webhooks reference tests, for this service's scheme; and what that scheme adds."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest
from conftest import sample_json
from hypothesis import given
from hypothesis import strategies as st

from kie_async._protocol.signing import sign, sign_callback, verify
from kie_async.errors import SettingsError, SignatureError
from kie_async.settings import Secret, Settings

VECTOR = sample_json("webhook_signature_vector.json")
KEY, TASK = VECTOR["key"], VECTOR["taskId"]
NOW = 1_763_640_000


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


FAULTS = {
    "no signature headers": "missing",
    "malformed timestamp": "malformed",
    "clock skew": "stale",
    "wrong signature": "wrong",
}


def judge(headers: dict[str, str], *, keys: tuple[str, ...] = (KEY,), task_id: str = TASK, now: float = NOW) -> str:
    try:
        verify(tuple(map(Secret, keys)), lower(headers), task_id, now)
    except SignatureError as error:
        (fault,) = (fault for words, fault in FAULTS.items() if words in error.message)
        assert error.code == (400 if fault == "malformed" else 401)
        return fault
    return "good"


GOOD = sign_callback(KEY, TASK, timestamp=NOW)
SIGNATURE = GOOD["X-Webhook-Signature"]


def test_the_documented_vector() -> None:
    assert VECTOR["headers"] == GOOD
    assert judge(VECTOR["headers"]) == "good"


@pytest.mark.parametrize("name", ["X-Webhook-Timestamp", "X-Webhook-Signature"])
def test_a_missing_or_empty_header(name: str) -> None:
    assert judge({other: value for other, value in GOOD.items() if other != name}) == "missing"
    assert judge({**GOOD, name: ""}) == "missing"
    assert judge({}) == "missing"


MALFORMED = [
    "nan", "inf", "1e9", "1_763_640_000", f" {NOW} ", f"+{NOW}", f"-{NOW}", "-5", f"{NOW}.0", "0x10", "hadfadsf",
    "１７６３６４００００", "١٧٦٣٦٤٠٠٠٠", "9" * 13, "9" * 400, f"{NOW}\n", f"{NOW}, {NOW}", "\ud800",  # noqa: RUF001
]  # fmt: skip


@pytest.mark.parametrize("timestamp", MALFORMED)
def test_a_malformed_timestamp_even_when_signed(timestamp: str) -> None:
    digest = hmac.digest(KEY.encode(), f"{TASK}.{timestamp}".encode("utf-8", "replace"), hashlib.sha256)
    signature = base64.b64encode(digest).decode()
    assert judge({"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": signature}) == "malformed"


@pytest.mark.parametrize(
    ("off", "verdict"),
    [
        (-301, "stale"), (-300.5, "stale"), (-300, "good"), (-299, "good"), (0, "good"),
        (299, "good"), (300, "good"), (300.5, "stale"), (301, "stale"),
    ],
)  # fmt: skip
def test_the_tolerance_is_300_seconds_both_ways(off: float, verdict: str) -> None:
    assert judge(GOOD, now=NOW + off) == verdict


def test_a_stale_timestamp_is_told_from_a_wrong_signature() -> None:
    assert judge({**GOOD, "X-Webhook-Signature": "wrong"}, now=NOW + 400) == "stale"


WRONG = [
    "dawfeoifkpqwoekfpqoekf", SIGNATURE[:-1], SIGNATURE[:-4], SIGNATURE[1:], SIGNATURE + "=", SIGNATURE.rstrip("="),
    SIGNATURE + " ", " " + SIGNATURE, SIGNATURE[:10] + "\n" + SIGNATURE[10:], SIGNATURE[:10] + "!" + SIGNATURE[10:],
    SIGNATURE.swapcase(), "v1," + SIGNATURE, "v1,", f"{SIGNATURE} {SIGNATURE}", f"{SIGNATURE}, {SIGNATURE}",
    "sha256=" + SIGNATURE, hmac.digest(KEY.encode(), f"{TASK}.{NOW}".encode(), hashlib.sha256).hex(),
    "é" * 44, SIGNATURE[:-1] + "é", "\udcff" * 44, "\ud800", "\0", "=" * 44,
]  # fmt: skip


@pytest.mark.parametrize("signature", WRONG)
def test_a_wrong_signature(signature: str) -> None:
    assert judge({**GOOD, "X-Webhook-Signature": signature}) == "wrong"


@given(st.text(st.characters(exclude_categories=[])))
def test_no_other_text_is_a_signature(signature: str) -> None:
    expected = "missing" if not signature else "wrong"
    assert signature == SIGNATURE or judge({**GOOD, "X-Webhook-Signature": signature}) == expected


@given(st.text(min_size=1), st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True), st.integers(0, 10**12 - 1))
def test_what_is_signed_passes_and_nothing_else_does(key: str, task_id: str, moment: int) -> None:
    headers = sign_callback(key, task_id, timestamp=moment)
    assert judge(headers, keys=(key,), task_id=task_id, now=moment) == "good"
    assert judge(headers, keys=(key,), task_id=f"{task_id}x", now=moment) == "wrong"
    assert judge(headers, keys=(f"{key}x",), task_id=task_id, now=moment) == "wrong"


def test_the_timestamp_is_signed() -> None:
    assert judge({**GOOD, "X-Webhook-Timestamp": str(NOW + 1)}) == "wrong"
    assert judge({**GOOD, "X-Webhook-Timestamp": f"0{NOW}"}) == "wrong"


def test_any_of_several_keys_may_have_signed() -> None:
    assert judge(GOOD, keys=("new", KEY)) == "good"
    assert judge(GOOD, keys=(KEY, "new")) == "good"
    assert judge(GOOD, keys=("new", "newer")) == "wrong"
    assert judge(GOOD, keys=()) == "wrong"


def test_the_key_is_taken_as_it_is() -> None:
    for key in ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "ключ"):
        digest = hmac.digest(key.encode(), f"{TASK}.{NOW}".encode(), hashlib.sha256)
        assert sign(Secret(key), TASK, str(NOW)) == base64.b64encode(digest)
    from_environment = b"\xff\xfe".decode("utf-8", "surrogateescape")
    digest = hmac.digest(b"\xff\xfe", f"{TASK}.{NOW}".encode(), hashlib.sha256)
    assert sign(Secret(from_environment), TASK, str(NOW)) == base64.b64encode(digest)


def test_an_empty_key_signs_nothing() -> None:
    with pytest.raises(SettingsError, match="empty"):
        sign_callback("", TASK)
    digest = hmac.digest(b"", f"{TASK}.{NOW}".encode(), hashlib.sha256)
    forged = {**GOOD, "X-Webhook-Signature": base64.b64encode(digest).decode()}
    assert judge(forged, keys=("",)) == "wrong"
    assert Settings(api_key="k", webhook_key=["", KEY]).webhook_keys[0].reveal() == KEY


def test_signed_now_by_default() -> None:
    before = int(time.time())
    headers = sign_callback(KEY, TASK)
    assert before <= int(headers["X-Webhook-Timestamp"]) <= time.time()
    assert judge(headers, now=time.time()) == "good"


def test_compared_in_constant_time_with_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(ours: bytes, given: bytes) -> bool:
        compared.append((ours, given))
        return False

    monkeypatch.setattr("kie_async._protocol.signing.hmac.compare_digest", compare)
    assert judge(GOOD, keys=(KEY, "new")) == "wrong"  # so nothing else compares
    assert compared == [
        (SIGNATURE.encode(), SIGNATURE.encode()),
        (sign(Secret("new"), TASK, str(NOW)), SIGNATURE.encode()),
    ]
