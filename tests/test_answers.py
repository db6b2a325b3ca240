"""What an answer means: status and body code, for calls that spend and calls that do not."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from conftest import sample_json
from hypothesis import given
from hypothesis import strategies as st

from kie_async import errors
from kie_async._protocol.endpoints import ROUTES, credits_left
from kie_async._protocol.response_codes import (
    BODY_CODES,
    HTTP_STATUSES,
    TRANSIENT,
    Response,
    parse_response,
    seconds_to_wait,
)
from kie_async.errors import KieError, SubmitUnknownError
from kie_async.models import ExtendRequest

SUBMIT = ROUTES["classic"].submit(ExtendRequest("a1", model="V5"), "https://me.example/cb")
LOOK = ROUTES["classic"].record_info("t1")


def body(code: object, msg: object = "words", data: object = None) -> bytes:
    return json.dumps({"code": code, "msg": msg, "data": data}).encode()


def refusal(call: object, answer: Response) -> KieError:
    with pytest.raises(KieError) as caught:
        parse_response(call, answer)  # type: ignore[arg-type]  # any call
    assert caught.value.__cause__ is None
    return caught.value


def test_success() -> None:
    answer = Response(200, json.dumps(sample_json("submit_ok.documented.json")).encode())
    assert parse_response(SUBMIT, answer) == "85cb349b9722e050d8ea299b88c12e96"
    assert parse_response(SUBMIT, Response(200, body("200", data={"taskId": "t1"}))) == "t1"
    assert parse_response(credits_left, Response(200, body(200, data=5916.25))).amount == 5916.25


@pytest.mark.parametrize(
    ("code", "kind", "charged", "retryable"),
    [
        (400, errors.InvalidRequestError, "no", False),
        (401, errors.AuthError, "no", False),
        (402, errors.InsufficientCreditsError, "no", False),
        (403, errors.AuthError, "no", False),
        (405, errors.RateLimitedError, "no", True),
        (409, errors.RefusedError, "no", False),
        (413, errors.InvalidRequestError, "no", False),
        (422, errors.InvalidRequestError, "no", False),
        (429, errors.RateLimitedError, "no", True),
        (430, errors.RateLimitedError, "no", True),
        (433, errors.KeyQuotaError, "no", False),
        (451, errors.InvalidRequestError, "no", False),
        (455, errors.UnavailableError, "no", True),
        (500, errors.RefusedError, "maybe", False),
        (501, errors.RefusedError, "maybe", False),
        (505, errors.UnavailableError, "no", False),
        (531, errors.RefusedError, "no", False),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_refusal_hidden_in_http_200(code: int, kind: type, charged: str, retryable: bool, as_text: bool) -> None:  # noqa: FBT001  # parameters of a table
    error = refusal(SUBMIT, Response(200, body(str(code) if as_text else code)))
    assert type(error) is kind
    assert (error.code, error.charged, error.retryable) == (code, charged, retryable)
    assert "words" in error.message
    assert ("may be charged" in error.message) == (charged == "maybe")  # its words can be "please try again later"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.UnavailableError), (403, errors.UnavailableError), (402, errors.InsufficientCreditsError),
        (404, errors.RefusedError), (405, errors.RefusedError), (422, errors.InvalidRequestError),
        (429, errors.RateLimitedError),
    ],
)  # fmt: skip
def test_an_http_refusal_with_a_page(status: int, kind: type) -> None:
    error = refusal(SUBMIT, Response(status, b"<html>error code: 1010</html>"))
    assert type(error) is kind
    assert error.charged == "no"
    assert "1010" in error.message


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, b"<html>sign in</html>"), (200, b""), (200, b'{"code":200,"data":{"taskId":"5c'), (502, b"<html>"),
        (503, b""), (408, b""), (200, body(599)), (200, body(None)), (200, body(200)), (200, body(200, data={})),
        (200, body(200, data={"taskId": 7})), (200, body(200, data={"taskId": "a.b"})), (500, body(500)),
        (500, body(200, data={"taskId": "t1"})), (200, body(408)), (503, body(505)), (418, body(None)),
    ],
)  # fmt: skip
def test_anything_else_leaves_a_submission_unknown(status: int, content: bytes) -> None:
    error = refusal(SUBMIT, Response(status, content))
    assert isinstance(error, SubmitUnknownError)
    assert (error.charged, error.retryable) == ("maybe", False)


@given(st.integers(100, 599), st.binary() | st.integers().map(body))
def test_no_odd_answer_is_a_success_or_a_wrong_no(status: int, content: bytes) -> None:
    error = refusal(SUBMIT, Response(status, content))
    if error.charged == "no":
        assert error.code in BODY_CODES or error.code in HTTP_STATUSES
    assert error.code in {*TRANSIENT, 401, 403, 405} or not error.retryable
    assert not (error.retryable and isinstance(error, errors.AuthError))


def test_both_count() -> None:
    assert refusal(SUBMIT, Response(503, body(455))).charged == "no"
    assert isinstance(refusal(SUBMIT, Response(429, body(200))), errors.RateLimitedError)
    assert isinstance(refusal(SUBMIT, Response(401, body(200, data={"taskId": "t1"}))), errors.AuthError)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    paid = refusal(SUBMIT, Response(status, b""))
    assert (paid.charged, "may be charged" in paid.message) == ("maybe", True)
    error = refusal(LOOK, Response(status, b""))
    assert isinstance(error, errors.UnexpectedRedirectError)
    assert error.charged == "no"


@pytest.mark.parametrize("answer", [Response(502, b"<html>"), Response(200, body(500)), Response(200, body(599))])
def test_a_read_that_failed_may_be_repeated(answer: Response) -> None:
    error = refusal(LOOK, answer)
    assert isinstance(error, errors.ServerError)
    assert (error.charged, error.retryable) == ("no", True)


def test_a_read_of_another_page_is_a_bad_response() -> None:
    assert type(refusal(LOOK, Response(200, b"<html>sign in</html>"))) is errors.BadResponseError
    assert type(refusal(LOOK, Response(200, body(200, data=[1])))) is errors.BadResponseError


@pytest.mark.parametrize("answer", [Response(200, body(200)), Response(200, body(422)), Response(404, b"")])
def test_a_task_that_is_not_there(answer: Response) -> None:
    if answer.body:
        assert parse_response(LOOK, answer) is None
    else:
        assert isinstance(refusal(LOOK, answer), errors.RefusedError)
    assert parse_response(LOOK, Response(404, body(None))) is None


@pytest.mark.parametrize("code", [200, 422, 501, 505])
def test_a_record_is_read_whatever_code_is_beside_it(code: int) -> None:
    data = {"taskId": "t1", "state": "fail", "failCode": "501", "failMsg": "bad style"}
    record = parse_response(LOOK, Response(200, body(code, data=data)))
    assert record is not None
    assert (record.status, record.error_code, record.error_message) == ("FAIL", 501, "bad style")


@pytest.mark.parametrize("code", [413, 451, 501, 531])
def test_a_code_that_only_a_task_can_have_is_its_end(code: int) -> None:
    record = parse_response(LOOK, Response(200, body(code)))
    assert record is not None
    assert (record.status, record.error_code, record.error_message) == ("FAIL", code, "words")
    assert isinstance(refusal(LOOK, Response(502, body(code))), KieError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, errors.AuthError), (402, errors.InsufficientCreditsError), (429, errors.RateLimitedError)],
)
@pytest.mark.parametrize("code", [-1, 0, 1, 10001])
def test_a_code_nobody_knows_does_not_hide_the_status(status: int, kind: type, code: int) -> None:
    for call in (SUBMIT, LOOK):
        error = refusal(call, Response(status, body(code)))
        assert type(error) is kind
        assert error.code == status


@pytest.mark.parametrize(
    ("data", "said", "why"),
    [
        ({"status": "GENERATE_AUDIO_FAILED"}, (531, "given back"), (531, "given back")),
        ({"state": "fail", "failCode": "SENSITIVE_WORD_ERROR", "failMsg": "own"}, (501, "words"), (501, "own")),
        ({"state": "fail", "failCode": "413", "failMsg": "own"}, (501, "words"), (413, "own")),
        ({"state": "generating"}, (501, "words"), (None, None)),
        ({"state": "fail"}, (505, "words"), (None, None)),
    ],
)
def test_a_failure_without_a_reason_has_the_one_beside_it(
    data: dict[str, str], said: tuple[int, str], why: tuple[int | None, str | None]
) -> None:
    record = parse_response(LOOK, Response(200, body(*said, data={"taskId": "t1", **data})))
    assert record is not None
    assert (record.error_code, record.error_message) == why


CREDITS = (
    "The current credits are insufficient. Please top up.",
    "Insufficient credits",
    "Credits insufficient",
    "You don't have enough credits to run this task",
    "Your account balance is not enough",
    "insufficient balance",
)


@pytest.mark.parametrize("words", CREDITS)
@pytest.mark.parametrize(
    ("status", "code"),
    [(200, 429), (429, 429), (429, None), (429, 10001), (200, 430), (200, 422), (200, 403), (200, 402)],
)
def test_a_refusal_for_want_of_credits_is_one_under_any_code(status: int, code: int | None, words: str) -> None:
    for call in (SUBMIT, LOOK) if code != 422 else (SUBMIT,):
        error = refusal(call, Response(status, body(code, words)))
        assert type(error) is errors.InsufficientCreditsError
        assert (error.charged, error.retryable) == ("no", False)


@pytest.mark.parametrize(
    ("status", "code", "words", "kind"),
    [
        (200, 429, "Your call frequency is too high. Please try again later.", errors.RateLimitedError),
        (200, 429, "Too many requests; you have enough credits", errors.RateLimitedError),
        (200, 500, "Insufficient credits", errors.RefusedError),
        (500, 500, "Insufficient credits", SubmitUnknownError),
        (200, 599, "Insufficient credits", SubmitUnknownError),
        (502, None, "Insufficient credits", SubmitUnknownError),
    ],
)
def test_words_about_credits_prove_nothing_elsewhere(status: int, code: int | None, words: str, kind: type) -> None:
    error = refusal(SUBMIT, Response(status, body(code, words)))
    assert type(error) is kind
    assert error.charged == ("maybe" if kind in {SubmitUnknownError, errors.RefusedError} else "no")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (500, 200, "HTTP status 500, but the body says code 200 and 'success'"),
        (401, "200", "HTTP status 401, but the body says code 200 and 'success'"),
        (200, 599, "HTTP status 200, but the body says code 599 and 'success'"),
        (503, None, "HTTP status 503, but the body says no code and 'success'"),
    ],
)
def test_what_contradicts_itself_is_told_so(status: int, code: object, words: str) -> None:
    for call in (SUBMIT, LOOK):
        assert words in refusal(call, Response(status, body(code, "success"))).message
    assert "success" not in refusal(SUBMIT, Response(500, body(200, ""))).message


def test_an_answer_that_is_no_success_may_name_its_task_all_the_same() -> None:
    error = refusal(SUBMIT, Response(500, body(200, "success", {"taskId": "t1"})))
    assert isinstance(error, SubmitUnknownError)
    assert (error.task_id, error.code) == ("t1", 500)
    assert error.message.endswith(
        "it may be running and charged, so it is not sent again: session.track('t1') follows it"
    )


@pytest.mark.parametrize(
    ("content", "task_id"),
    [
        (b'{"code":200,"data":{"taskId":"%s"', "5c79" * 8),
        (b'{"code":200,"data":{"taskId":"%s', None),  # cut off within it, perhaps
        (b'{"taskId":"%s","task_id":"' + b"0" * 32 + b'"', None),
    ],
)
def test_an_answer_that_is_cut_off_behind_the_id_of_its_task_names_it(content: bytes, task_id: str | None) -> None:
    error = refusal(SUBMIT, Response(200, content % (b"5c79" * 8)))
    assert isinstance(error, SubmitUnknownError)
    assert error.task_id == task_id


@pytest.mark.parametrize(("status", "code"), [(429, 200), (200, 429), (200, 500), (455, 455)])
def test_what_names_a_task_is_never_sent_again(status: int, code: int) -> None:
    error = refusal(SUBMIT, Response(status, body(code, "words", {"taskId": "t1"})))
    assert isinstance(error, SubmitUnknownError)
    assert (error.task_id, error.charged, error.retryable) == ("t1", "maybe", False)


def test_an_answer_that_was_encoded_twice() -> None:
    assert parse_response(SUBMIT, Response(200, json.dumps(body(200, data={"taskId": "t1"}).decode()).encode())) == "t1"


@pytest.mark.parametrize(
    ("status", "content"),
    [(403, b"<!DOCTYPE html><title>Just a moment...</title>"), (403, b"error code: 1010"), (403, b""),
     (401, b"\n <html>sign in</html>")],
)  # fmt: skip
def test_a_page_is_not_the_services_word_on_the_key(status: int, content: bytes) -> None:
    assert type(refusal(LOOK, Response(status, content))) is errors.ServerError
    error = refusal(SUBMIT, Response(status, content))
    assert type(error) is errors.UnavailableError
    assert (error.code, error.charged, error.retryable) == (status, "no", True)
    assert "not the service's word" in error.message


@pytest.mark.parametrize("answer", [Response(403, body(403)), Response(401, b""), Response(401, b"Unauthorized")])
def test_what_the_service_says_of_the_key_is_believed(answer: Response) -> None:
    for call in (SUBMIT, LOOK):
        assert type(refusal(call, answer)) is errors.AuthError


def test_addresses_in_messages_are_cut() -> None:
    error = refusal(SUBMIT, Response(200, body(451, "no https://u.example/x.mp3?sig=SECRET\r\n\x1b[31m")))
    assert "SECRET" not in str(error)
    assert "\x1b" not in str(error)


NOW = datetime(2026, 4, 16, 7, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("12", 12.0), ("0", 0.0), ("-3", None), ("nan", None), ("inf", None), ("99999999", 99999999.0),
        ("Thu, 16 Apr 2026 07:00:30 GMT", 30.0), ("Thu, 16 Apr 2026 06:00:00 GMT", None), ("soon", None), ("", None),
        ("Thu, 99 Apr 99999 07:00:30 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert seconds_to_wait(header, NOW) == seconds
    error = refusal(SUBMIT, Response(200, body(429), 7.0))
    assert isinstance(error, errors.RateLimitedError)
    assert error.retry_after == 7
