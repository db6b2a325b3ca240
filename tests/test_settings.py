"""Settings: the environment, refusals that name the setting, and secrets that stay secret."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import pickle
import re
import socket
import ssl
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from leaks import shown

from kie_async import events
from kie_async.errors import SettingsError
from kie_async.settings import BASE_URL, UPLOAD_BASE_URL, Secret, Settings, machine_name

KEY = "f00dfeed0123456789"


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", KEY)
    monkeypatch.setenv("KIE_BASE_URL", "http://127.0.0.1:8080/")
    monkeypatch.setenv("KIE_CALLBACK_URL", "https://me.example/kie/")
    monkeypatch.setenv("KIE_WEBHOOK_KEY", "w1")
    settings = Settings()
    assert settings.api_key.reveal() == KEY
    assert settings.base_url == settings.upload_base_url == "http://127.0.0.1:8080"
    assert settings.on_loopback
    assert settings.callback_url == "https://me.example/kie"
    assert [key.reveal() for key in settings.webhook_keys] == ["w1"]


def test_what_is_given_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "other")
    settings = Settings(api_key=KEY, webhook_key=("old", Secret("new"), ""))
    assert settings.api_key.reveal() == KEY
    assert (settings.base_url, settings.upload_base_url) == (BASE_URL, UPLOAD_BASE_URL)
    assert not settings.on_loopback
    assert [key.reveal() for key in settings.webhook_keys] == ["old", "new"]
    assert Settings(api_key=KEY).webhook_keys == ()


@pytest.mark.parametrize(
    "key", ["", " ", "a b", "abc\n", "'abc'", 'k"k', "Bearer abc", "YOUR_API_KEY", "your-key", "kéy", "a\0"]
)
def test_a_key_that_cannot_be_one_is_refused_unseen(key: str) -> None:
    with pytest.raises(SettingsError, match="api_key") as caught:
        Settings(api_key=key)
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "api.kie.ai", "ftp://api.kie.ai", "http://api.kie.ai", "http://10.0.0.1", "https://u:p@api.kie.ai",
        "https://api.kie.ai?x=1", "https://api.kie.ai#x", "https://", "https://[::1", "https://a b", "https://a:port",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["base_url", "upload_base_url", "callback_url"])
def test_an_address_that_is_none_is_refused(name: str, url: str) -> None:
    fields: dict[str, Any] = {name: url}
    with pytest.raises(SettingsError, match=name):
        Settings(api_key=KEY, **fields)


def test_a_machine_is_its_host_name_or_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(api_key=KEY).machine == Settings(api_key=KEY, machine="").machine == socket.gethostname()
    monkeypatch.setenv("KIE_MACHINE", "studio-1")
    assert Settings(api_key=KEY).machine == machine_name() == "studio-1"
    assert Settings(api_key=KEY, machine="other").machine == "other"


@pytest.mark.parametrize("name", ["a b", "a\n", "a" * 101])
def test_a_machine_whose_name_names_no_queue_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(SettingsError, match="KIE_MACHINE"):
        Settings(api_key=KEY, machine=name)
    monkeypatch.setenv("KIE_MACHINE", name)
    with pytest.raises(SettingsError, match="KIE_MACHINE"):
        machine_name()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.1.2.3"])
def test_plain_http_is_for_loopback(host: str) -> None:
    assert Settings(api_key=KEY, base_url=f"http://{host}:1").on_loopback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("observer", None), ("observer", asyncio.sleep),
        ("route", "other"), ("quota", 0), ("max_in_flight", 1.5), ("max_concurrent_polls", -1), ("total_timeout", -1),
        ("task_timeout", float("nan")), ("connect_timeout", 0),
        ("quota_window", 0), ("missing_audio_timeout", True), ("quota_margin", "1"), ("read_timeout", float("inf")),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings(api_key=KEY, **{name: value})


def test_tls_is_never_switched_off() -> None:
    context = ssl.create_default_context()
    assert Settings(api_key=KEY, ssl_context=context).ssl_context is context
    context.check_hostname = False
    with pytest.raises(SettingsError, match="ssl_context"):
        Settings(api_key=KEY, ssl_context=context)
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises(SettingsError, match="ssl_context"):
        Settings(api_key=KEY, ssl_context=context)


def test_a_secret_shows_itself_to_nobody() -> None:
    settings = Settings(api_key=KEY, webhook_key=KEY)
    shown = [repr(settings), str(settings), f"{settings.api_key}", repr(attrs.asdict(settings)), repr(vars(Settings))]
    shown.append(repr(attrs.astuple(settings)))
    assert "pass" not in repr(Settings(api_key=KEY, proxy="http://user:pass@127.0.0.1:1"))
    assert not any(KEY in text for text in shown)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(settings.api_key)
    assert copy.copy(settings.api_key) is copy.deepcopy(settings.api_key) is settings.api_key
    assert settings.api_key
    assert not Secret("")
    assert repr(Secret("")) == "Secret('')"


EVENTS: list[events.Event] = [
    events.Submitting("extend", "V5", 0.5),
    events.Submitted("t1", "extend", "V5", 0.5),
    events.SubmissionFailed("extend", "InvalidRequestError", "x https://a.example/b?sig=1", 422, "no"),
    events.SubmissionUnknown("extend", "lost"),
    events.Followed("t1", {"traceparent": "00-1"}),
    events.Paused("t1"),
    events.Polled("t1", "PENDING", 3.0),
    events.PollFailed("t1", "x https://a.example/b?sig=1"),
    events.CallbackReceived("t1", "text\nforged", 200),
    events.Retrying("credits", "x", 1, 0.5),
    events.Queued(3),
    events.StageReached("t1", "text"),
    events.Finished("t1", "extend", 90.0, 4),
    events.Notice("t1", "odd"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_are_logged_on_one_clean_line(event: events.Event, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="kie_async"):
        events.log_event(event)
    (record,) = caplog.records
    assert record.name.startswith("kie_async.")
    assert record.getMessage().startswith(type(event).__name__)
    assert "\n" not in record.getMessage()
    assert "sig=" not in record.getMessage()


def test_a_log_record_has_the_fields_of_its_event(caplog: pytest.LogCaptureFixture) -> None:
    context = {"traceparent": "00-1"}
    refused = events.SubmissionFailed(
        "extend", "ServerError", "see https://a.example/b?sig=1", 500, "no", "t1", context
    )
    with caplog.at_level(logging.DEBUG, logger="kie_async"):
        events.log_event(refused)
    (record,) = caplog.records
    assert {name: value for name, value in vars(record).items() if name.startswith("kie_")} == {
        "kie_event": "SubmissionFailed",
        "kie_operation": "extend",
        "kie_error": "ServerError",
        "kie_reason": "see https://a.example/…",
        "kie_code": 500,
        "kie_charged": "no",
        "kie_task_id": "t1",
    }


def test_every_name_of_a_log_record_is_documented() -> None:
    names = {f"kie_{field.name}" for kind in get_args(events.Event) for field in attrs.fields(kind)} - {"kie_context"}
    documented = set(re.findall(r"``(kie_\w+)``", events.__doc__ or "")) - {"kie_event", "kie_"}
    assert documented == names


def test_a_callback_that_is_refused_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="kie_async"):
        events.log_event(events.CallbackReceived("", "", 200))
        events.log_event(events.CallbackReceived("", "", 401, "clock skew 600 s"))
    assert ["clock skew" in record.getMessage() for record in caplog.records] == [True]


def test_events_below_the_level_cost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="kie_async"):
        events.log_event(events.Polled("t1", "PENDING", 3.0))
    assert not caplog.records


def test_an_observer_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: events.Event) -> None:
        raise RuntimeError(type(event).__name__)

    events.guarded(broken)(events.Notice("t1", "odd"))
    assert "the observer failed on Notice" in caplog.text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see https://u:p@h.example/a/b?token=1 now", "see https://h.example/… now"),
        ("https://h.example", "https://h.example"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer …"),
        ("a\x1b[31mb\r\nc", "a�[31mb��c"),
        ("x" * 600, "x" * 500 + "…"),
    ],
)
def test_foreign_text_is_made_fit_to_show(text: str, clean: str) -> None:
    assert events.clean(text) == clean


# ---------------------------------------------------------------- keys in files


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kie-api-key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    monkeypatch.setenv("KIE_API_KEY_FILE", str(path))
    return path


def test_the_keys_may_come_from_files(monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    emitted: list[events.Event] = []
    hook = key_file.with_name("hook")
    hook.write_bytes(b"\xef\xbb\xbfhook\r\n")
    hook.chmod(0o600)
    monkeypatch.setenv("KIE_WEBHOOK_KEY_FILE", str(hook))
    settings = Settings(observer=emitted.append)
    assert settings.api_key.reveal() == KEY
    assert [key.reveal() for key in settings.webhook_keys] == ["hook"]
    assert emitted == []
    assert Settings(api_key="given", webhook_key="").api_key.reveal() == "given"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "api_key is empty"),
        (b" \n", "api_key is empty"),
        (b"x" * 4097, "larger than 4096 bytes"),
        (b"\xff\xfe" + KEY.encode(), "is no text"),
        (KEY.encode() + b"\nanother\n", "is not one line of text"),
        (b"\0\1", "is not one line of text"),
        (b"a b", "api_key holds spaces"),
    ],
)
def test_a_file_that_holds_no_key_is_refused_unseen(key_file: Path, content: bytes, words: str) -> None:
    key_file.write_bytes(content)
    with pytest.raises(SettingsError, match=words) as caught:
        Settings()
    assert caught.value.message.startswith("api_key")
    everything = "".join(shown(caught.value))
    assert KEY not in everything


def test_a_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "absent", "No such file"),
        (tmp_path, "no regular file"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path / ("n" * 300), "name too long"),
    ):
        monkeypatch.setenv("KIE_API_KEY_FILE", str(path))
        with pytest.raises(SettingsError, match=words) as caught:
            Settings()
        assert f"KIE_API_KEY_FILE names, '{path}'" in caught.value.message


def test_a_key_and_a_file_of_one_are_too_many(monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    monkeypatch.setenv("KIE_API_KEY", "f00dfeed-another")
    with pytest.raises(SettingsError, match="KIE_API_KEY and KIE_API_KEY_FILE are both set") as caught:
        Settings()
    assert "f00dfeed" not in "".join(shown(caught.value))
    assert key_file.exists()
    monkeypatch.setenv("KIE_API_KEY", "")
    assert Settings().api_key.reveal() == KEY


def test_a_file_that_others_can_read_is_told_once(key_file: Path) -> None:
    key_file.chmod(0o644)
    emitted: list[events.Event] = []
    for _ in range(2):
        assert Settings(observer=emitted.append).api_key.reveal() == KEY
    (notice,) = emitted
    assert isinstance(notice, events.Notice)
    assert "every user of this machine can read" in notice.note
    assert str(key_file) in notice.note
    assert KEY not in notice.note
