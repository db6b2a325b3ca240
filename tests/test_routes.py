"""Both routes: what exactly goes out."""

from __future__ import annotations

from conftest import sample_json

from kie_async._protocol.endpoints import ROUTES, credits_left, download_url
from kie_async.models import ExtendRequest, UploadExtendRequest

CALLBACK = "https://example.com/cb"
FULL = ExtendRequest(
    "a1",
    model="V5_5",
    prompt="la",
    style="s",
    title="t",
    continue_at=60,
    negative_tags="n",
    vocal_gender="f",
    style_weight=0.29,
    weirdness_constraint=0.57,
    audio_weight=1,
    persona_id="p",
    persona_model="voice_persona",
    source_duration=120,
)


def test_extend_as_captured() -> None:
    asked = sample_json("exchange_extend_unknown_audio_id.captured.json")["request"]
    request = ExtendRequest(
        "no-such-audio-id", model="V5", prompt="extend with a bridge", style="Synthwave", title="Side B", continue_at=30
    )
    call = ROUTES["classic"].submit(request, CALLBACK)
    assert call.body == asked["json"]
    assert asked["url"] == "https://api.kie.ai" + call.path
    assert (call.method, call.spends) == ("POST", True)


def test_upload_extend_always_sends_moment_and_instrumental() -> None:
    url = "https://files.example/a.mp3"
    call = ROUTES["classic"].submit(UploadExtendRequest(url, model="V5", continue_at=45.5), CALLBACK)
    assert call.path == "/api/v1/generate/upload-extend"
    assert call.body == {
        "uploadUrl": url,
        "defaultParamFlag": False,
        "instrumental": False,
        "continueAt": 45.5,
        "model": "V5",
        "callBackUrl": CALLBACK,
    }


def test_every_field_is_sent_in_camel_case() -> None:
    assert ROUTES["classic"].submit(FULL, CALLBACK).body == {
        "defaultParamFlag": True,
        "audioId": "a1",
        "model": "V5_5",
        "prompt": "la",
        "style": "s",
        "title": "t",
        "continueAt": 60,
        "negativeTags": "n",
        "vocalGender": "f",
        "styleWeight": 0.29,
        "weirdnessConstraint": 0.57,
        "audioWeight": 1,
        "personaId": "p",
        "personaModel": "voice_persona",
        "callBackUrl": CALLBACK,
    }


def test_instrumental_is_sent_when_it_is_one() -> None:
    request = ExtendRequest("a1", model="V5", style="s", title="t", continue_at=6, instrumental=True)
    body = ROUTES["classic"].submit(request, CALLBACK).body
    assert body is not None
    assert body["instrumental"] is True
    assert "prompt" not in body


def test_the_jobs_route_sends_snake_case() -> None:
    call = ROUTES["jobs"].submit(FULL, CALLBACK)
    assert call.path == "/api/v1/jobs/createTask"
    assert call.body is not None
    assert (call.body["model"], call.body["callBackUrl"]) == ("ai-music-api/extend", CALLBACK)
    assert call.body["input"]["weirdness_constraint"] == 0.57
    assert "default_param_flag" not in call.body["input"]
    assert "source_duration" not in call.body["input"]
    upload = UploadExtendRequest("https://f.example/a", model="V5", continue_at=5)
    body = ROUTES["jobs"].submit(upload, CALLBACK).body
    assert body == {
        "model": "ai-music-api/upload-and-extend-audio",
        "callBackUrl": CALLBACK,
        "input": {"upload_url": "https://f.example/a", "model": "V5", "instrumental": False, "continue_at": 5},
    }


def test_a_call_does_not_show_the_token_of_its_callback() -> None:
    call = ROUTES["classic"].submit(ExtendRequest("a", model="V5"), f"{CALLBACK}/a-token")
    assert "a-token" not in repr(call)


def test_reads_as_captured() -> None:
    asked = sample_json("exchange_record_info_unknown_task.captured.json")["request"]
    task_id = asked["url"].partition("=")[2]
    call = ROUTES["classic"].record_info(task_id)
    assert f"https://api.kie.ai{call.path}?taskId={call.query['taskId']}" == asked["url"]
    assert ROUTES["jobs"].record_info("t1").path == "/api/v1/jobs/recordInfo"
    assert credits_left.path in sample_json("exchange_credit.captured.json")["request"]["url"]
    link = sample_json("exchange_download_url_foreign.captured.json")["request"]
    call2 = download_url(link["json"]["url"])
    assert (call2.body, "https://api.kie.ai" + call2.path) == (link["json"], link["url"])
    assert not call.spends
    assert not call2.spends
