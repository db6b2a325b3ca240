"""Spans and metrics, made by the real SDK of OpenTelemetry from what sessions do against the emulator."""

from __future__ import annotations

import importlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from command_line import ended, environment, served, started
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.parser import text_string_to_metric_families
from service import REQUEST, serving

import kie_async as kie
from kie_async import otel
from kie_async.emulator import Fault
from kie_async.events import Event, Finished, Followed, Submitted, Submitting
from kie_async.journal import SQLiteJournal
from kie_async.testing import EmulatorHandle

pytestmark = pytest.mark.anyio


class Telemetry:
    """The spans and metrics of one process, and the observer that makes them."""

    def __init__(self) -> None:
        self.emitted: list[Event] = []
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self._exporter = InMemorySpanExporter()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.observer = otel.OpenTelemetryObserver(
            self.emitted.append,
            tracer_provider=self.tracer_provider,
            meter_provider=MeterProvider([self._reader], shutdown_on_exit=False),
            server_address="127.0.0.1",
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in this order."""
        return list(self._exporter.get_finished_spans())

    @property
    def metrics(self) -> dict[str, Metric]:
        """All metrics by name, without their namespace."""
        data = self._reader.get_metrics_data()
        found = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ] if data else []  # fmt: skip
        return {metric.name.removeprefix("kie_async.client."): metric for metric in found}

    def points(self, name: str) -> list[tuple[dict[str, Any], float]]:
        """The attributes and the sum of each point of a metric; no points if there is no such metric."""
        metric = self.metrics.get(name)
        points = metric.data.data_points if metric else ()
        return [
            (dict(point.attributes or {}), point.value if isinstance(point, NumberDataPoint) else point.sum)
            for point in points
            if isinstance(point, NumberDataPoint | HistogramDataPoint)
        ]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def ids_of(span: ReadableSpan) -> tuple[int, int]:
    """The ids of a span: its trace's, and its own."""
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def observed(telemetry: Telemetry, **options: Any) -> dict[str, Any]:
    return {"observer": telemetry.observer, **options}


async def test_a_task_is_a_span_from_its_submission_to_its_end(telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("program")
    async with serving(settings=observed(telemetry, route="jobs")) as service:
        with tracer.start_as_current_span("request"):
            task = await service.session.submit(REQUEST)
        await task
    request, span = telemetry.spans
    assert (span.name, span.kind, span.status.status_code) == ("kie.extend", SpanKind.CLIENT, StatusCode.UNSET)
    assert parent_of(span) == ids_of(request)
    end = next(event for event in telemetry.emitted if isinstance(event, Finished))
    assert attributes_of(span) == {
        "server.address": "127.0.0.1",
        "kie.operation": "extend",
        "kie.model": "V5",
        "kie.quota.wait_time": 0.0,
        "kie.task.id": task.id,
        "kie.polls": end.polls,
        "kie.detection_lag": end.lag,
        "kie.credits": 12.0,
    }
    stages = [(event.name, dict(event.attributes or {})) for event in span.events]
    assert stages == [("kie.task.stage", {"kie.stage": stage}) for stage in ("text", "first", "complete")]


async def test_the_metrics_of_a_task(telemetry: Telemetry) -> None:
    async with serving(settings=observed(telemetry, route="jobs", quota=1)) as service:
        await (await service.session.submit(REQUEST))
        await service.session.submit(REQUEST)
    extend = {"kie.operation": "extend"}
    assert telemetry.points("submissions") == [({**extend, "kie.response.status_code": 200}, 2)]
    assert telemetry.points("credits") == [(extend, 12.0)]
    first, *_ = [event for event in telemetry.emitted if isinstance(event, Finished)]
    assert telemetry.points("task.duration") == [(extend, first.seconds)]  # the other task goes on
    assert telemetry.points("task.detection_lag") == [(extend, first.lag)]
    assert telemetry.points("quota.wait_time") == [(extend, 0.0)]
    assert telemetry.points("polls") == [({}, first.polls)]
    assert {name: metric.unit for name, metric in telemetry.metrics.items()} == {
        "submissions": "{submission}",
        "quota.wait_time": "s",
        "task.duration": "s",
        "task.detection_lag": "s",
        "credits": "{credit}",
        "polls": "{poll}",
    }


async def test_a_wait_for_the_quota_is_measured(telemetry: Telemetry) -> None:
    quota = {"quota": 1, "quota_window": 10.0, "quota_margin": 0.0}
    async with serving(settings=observed(telemetry, **quota)) as service:
        for _ in range(2):
            await service.session.submit(REQUEST)
    [(_, waited)] = telemetry.points("quota.wait_time")
    assert waited == pytest.approx(10.0, abs=0.1)
    waits = [attributes_of(span)["kie.quota.wait_time"] for span in telemetry.spans]
    assert sorted(round(wait) for wait in waits) == [0, 10]


async def test_a_refused_submission_is_a_span_and_a_point_with_its_code(telemetry: Telemetry) -> None:
    faults = [Fault("code", code=422, message="cannot read https://user:word@a.example/song?sig=1")]
    async with serving(settings=observed(telemetry), faults=faults) as service:
        with pytest.raises(kie.InvalidRequestError):
            await service.session.submit(REQUEST)
    (span,) = telemetry.spans
    attributes = attributes_of(span)
    assert (attributes["error.type"], attributes["kie.charged"]) == ("InvalidRequestError", "no")
    assert attributes["kie.response.status_code"] == 422
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is not None
    assert "https://a.example/…" in span.status.description
    refused = {"kie.operation": "extend", "error.type": "InvalidRequestError", "kie.response.status_code": 422}
    assert telemetry.points("submissions") == [(refused, 1)]


async def test_an_unknown_submission_is_counted_by_itself(telemetry: Telemetry) -> None:
    async with serving(settings=observed(telemetry), faults=[Fault("lost")]) as service:
        with pytest.raises(kie.SubmitUnknownError):
            await service.session.submit(REQUEST)
    (span,) = telemetry.spans
    assert (attributes_of(span)["error.type"], attributes_of(span)["kie.charged"]) == ("SubmitUnknownError", "maybe")
    assert telemetry.points("submissions") == [({"kie.operation": "extend", "error.type": "SubmitUnknownError"}, 1)]
    assert telemetry.points("unknown_submissions") == [({"kie.operation": "extend"}, 1)]


async def test_a_task_that_failed_is_an_error_with_its_code(telemetry: Telemetry) -> None:
    async with serving(settings=observed(telemetry), faults=[Fault("failed", code=531)]) as service:
        with pytest.raises(kie.TaskFailedError):
            await (await service.session.submit(REQUEST))
    (span,) = telemetry.spans
    attributes = attributes_of(span)
    assert (attributes["error.type"], attributes["kie.response.status_code"]) == ("TaskFailedError", 531)
    assert span.status.status_code is StatusCode.ERROR
    [(measured, _)] = telemetry.points("task.duration")
    assert measured == {"kie.operation": "extend", "error.type": "TaskFailedError"}
    assert telemetry.points("credits") == [({"kie.operation": "extend"}, 0.0)]


async def test_a_poll_that_fails_is_an_event_and_a_point(telemetry: Telemetry) -> None:
    faults = [Fault("code", code=500, on="record_info", nth=1)]
    async with serving(settings=observed(telemetry), faults=faults) as service:
        await (await service.session.submit(REQUEST))
    (span,) = telemetry.spans
    failed = [dict(event.attributes or {}) for event in span.events if event.name == "kie.poll.failed"]
    assert [each["error.type"] for each in failed] == ["ServerError"]
    assert ({"error.type": "ServerError"}, 1) in telemetry.points("polls")


async def test_a_task_that_goes_on_when_its_session_closes_has_a_span_without_a_status(telemetry: Telemetry) -> None:
    async with serving(settings=observed(telemetry)) as service:
        await service.session.submit(REQUEST)
    (span,) = telemetry.spans
    assert ([event.name for event in span.events], span.status.status_code) == (
        ["kie.session.closed"],
        StatusCode.UNSET,
    )
    assert not telemetry.points("task.duration")


async def test_who_is_followed_again_goes_on_in_the_same_trace(telemetry: Telemetry) -> None:
    async with serving(settings=observed(telemetry)) as service:
        task = await service.session.submit(REQUEST)
        with pytest.raises(kie.WaitTimeoutError):
            await task.result(timeout=5)
        await task
    first, again = telemetry.spans
    assert [event.name for event in first.events] == ["kie.task.paused"]
    assert (again.name, parent_of(again)) == ("kie.follow", ids_of(first))
    assert attributes_of(again)["kie.operation"] == "extend"


async def test_a_process_that_takes_a_task_over_joins_its_trace(telemetry: Telemetry, tmp_path: Path) -> None:
    path, other = tmp_path / "journal.sqlite", Telemetry()
    async with serving(settings=observed(telemetry)) as service:
        async with kie.KieSession(service.session.settings, journal=SQLiteJournal(path, poll=5.0)) as session:
            task = await session.submit(REQUEST)
        settings = attrs.evolve(service.session.settings, observer=other.observer)
        async with kie.KieSession(settings, journal=SQLiteJournal(path, poll=5.0)) as session:
            (again,) = [each async for each in session.resume()]
            await again
    (submitted,), (followed,) = telemetry.spans, other.spans
    assert (followed.name, parent_of(followed)) == ("kie.follow", ids_of(submitted))
    assert attributes_of(followed)["kie.task.id"] == task.id
    assert other.points("credits") == [({"kie.operation": "extend"}, 12.0)]
    assert not telemetry.points("credits")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorHandle]:
    with served(monkeypatch) as emulated:
        yield emulated


CRASHES = """
import asyncio, os, signal, sys
from opentelemetry.sdk.trace import TracerProvider
import kie_async as kie
from kie_async.events import Submitted
from kie_async.otel import OpenTelemetryObserver

def observe(event):
    if isinstance(event, Submitted):
        print(event.context["traceparent"], flush=True)

async def main():
    settings = kie.Settings(observer=OpenTelemetryObserver(observe, tracer_provider=TracerProvider()))
    async with kie.KieSession(settings, journal=sys.argv[1]) as session:
        await session.extend("a1", model="V5")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # real time: another process takes part
async def test_who_goes_on_for_a_process_that_was_killed_joins_its_trace(
    emulated: EmulatorHandle, telemetry: Telemetry, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.sqlite"
    killed = await anyio.run_process([sys.executable, "-c", CRASHES, str(journal)], check=False)
    assert killed.returncode == -signal.SIGKILL
    async with kie.KieSession(kie.Settings(observer=telemetry.observer), journal=journal) as session:
        (task,) = [each async for each in session.resume()]
        await task
    (span,) = telemetry.spans
    assert span.parent is not None
    _, trace_id, span_id, _ = killed.stdout.decode().strip().split("-")
    assert (span.parent.trace_id, span.parent.span_id) == (int(trace_id, 16), int(span_id, 16))
    assert len(emulated.ledger) == 1


INSTRUMENTED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=open({path!r}, "w"))))
trace.set_tracer_provider(provider)
"""


def test_a_command_that_is_instrumented_makes_spans(emulated: EmulatorHandle, tmp_path: Path) -> None:
    """``opentelemetry-instrument`` starts a program with such a module on its path."""
    spans = tmp_path / "spans.json"
    (tmp_path / "sitecustomize.py").write_text(INSTRUMENTED.format(path=str(spans)))
    with started("extend", "a1", "--model", "V5", env=environment(emulated, PYTHONPATH=str(tmp_path))) as process:
        assert ended(process).code == 0
    span = json.loads(spans.read_text())
    assert (span["name"], span["attributes"]["server.address"]) == ("kie.extend", "127.0.0.1")


async def test_a_task_of_elsewhere_begins_a_trace_and_sessions_may_share_it(telemetry: Telemetry) -> None:
    async with serving() as service:
        task = await service.session.submit(REQUEST)
        settings = attrs.evolve(service.session.settings, observer=telemetry.observer)
        async with kie.KieSession(settings) as first, kie.KieSession(settings) as second:
            tasks = first.track(task.id), second.track(task.id)
            for each in tasks:
                await each
    (span,) = telemetry.spans
    assert (span.name, parent_of(span)) == ("kie.follow", None)


def test_a_task_that_is_followed_before_its_answer_leaves_no_span_open(telemetry: Telemetry) -> None:
    submitting = Submitting("extend", "V5", 0.0)
    telemetry.observer(Followed("t1"))
    telemetry.observer(submitting)
    telemetry.observer(Submitted("t1", "extend", "V5", 0.0, context=submitting.context))
    telemetry.observer(Finished("t1", "extend", 90.0, 3))
    assert [span.name for span in telemetry.spans] == ["kie.follow", "kie.extend"]


async def test_another_operation_of_the_service_does_not_make_metrics_grow(telemetry: Telemetry) -> None:
    telemetry.observer(Finished("t1", "generate", 90.0, 3, credits=12.0))
    assert telemetry.points("credits") == [({"kie.operation": "_OTHER"}, 12.0)]


async def test_a_callback_is_a_link_to_the_request_that_brought_it(telemetry: Telemetry) -> None:
    def observe(event: Event) -> None:
        service.emitted.append(event)
        telemetry.observer(event)

    tracer = telemetry.tracer_provider.get_tracer("program")
    async with serving(settings={"observer": observe}) as service:
        task = await service.session.submit(REQUEST)
        with tracer.start_as_current_span("POST /kie"):
            await service.call_back(task.id, "text")
        await service.call_back(task.id, "text")  # no span is current
        await task
    request, span = telemetry.spans
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == ids_of(request)
    assert [event.name for event in span.events].count("kie.callback") == 2


async def test_callbacks_are_counted_by_what_became_of_them(telemetry: Telemetry) -> None:
    async with serving(callbacks=True, settings=observed(telemetry)) as service:
        await (await service.session.submit(REQUEST))
        assert await service.session.receiver.handle({}, b"{", "s" * 43) == 400
        body = b'{"code":200,"msg":"","data":{"callbackType":"text","task_id":"another","data":[]}}'
        assert await service.session.receiver.handle({}, body, "s" * 43) == 200
    counted = {
        (point["kie.callback.result"], point["http.response.status_code"]): count
        for point, count in telemetry.points("callbacks")
    }
    assert counted == {("accepted", 200): 3, ("refused", 400): 1, ("ignored", 200): 1}


async def test_no_metric_has_the_id_of_a_task_and_nothing_the_key(telemetry: Telemetry) -> None:
    async with serving(callbacks=True, settings=observed(telemetry)) as service:
        task = await service.session.submit(REQUEST)
        await task
        secrets = [service.emulator.key, service.token(task.id)]
    shown = repr([metric.to_json() for metric in telemetry.metrics.values()])
    assert len(telemetry.metrics) == 7
    assert not [secret for secret in (task.id, *secrets) if secret in shown]
    assert not [secret for secret in secrets if secret in repr([span.to_json() for span in telemetry.spans])]


async def test_every_metric_and_attribute_is_documented(telemetry: Telemetry) -> None:
    faults = [Fault("lost", nth=1), Fault("code", code=500, on="record_info", nth=1)]
    async with serving(settings=observed(telemetry, route="jobs"), faults=faults) as service:
        with pytest.raises(kie.SubmitUnknownError):
            await service.session.submit(REQUEST)
        task = await service.session.submit(REQUEST)
        await service.session.receiver.handle({}, b"{", "s" * 43)
        await task
    documented = set(re.findall(r"``([a-z_.]+)``", otel.__doc__ or ""))
    named = {*telemetry.metrics}
    assert len(named) == 8
    named |= {name for metric in telemetry.metrics for point, _ in telemetry.points(metric) for name in point}
    for span in telemetry.spans:
        named |= {span.name, *attributes_of(span), *(event.name for event in span.events)}
    assert named - documented == set()


async def test_an_observer_that_fails_costs_no_span(caplog: pytest.LogCaptureFixture, telemetry: Telemetry) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError(type(event).__name__)

    provider = telemetry.tracer_provider
    observer = otel.OpenTelemetryObserver(broken, tracer_provider=provider)
    async with serving(settings={"observer": observer}) as service:
        await (await service.session.submit(REQUEST))
    assert [span.name for span in telemetry.spans] == ["kie.extend"]
    assert "the observer failed on Finished" in caplog.text


async def test_without_an_sdk_it_does_nothing() -> None:
    async with serving(settings={"observer": otel.OpenTelemetryObserver()}) as service:
        assert (await (await service.session.submit(REQUEST))).tracks


# ---------------------------------------------------------------- Prometheus


async def test_prometheus_reads_the_metrics_and_spans_may_be_made_besides(telemetry: Telemetry) -> None:
    scraped = otel.PrometheusMetrics()
    observer = otel.OpenTelemetryObserver(scraped.observer, tracer_provider=telemetry.tracer_provider)
    async with serving(settings={"observer": observer}) as service:
        await (await service.session.submit(REQUEST))
    assert [span.name for span in telemetry.spans] == ["kie.extend"]
    assert scraped.content_type.startswith("text/plain")
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(scraped.text().decode())
        for sample in family.samples
    }
    assert samples["kie_async_client_submissions_total"] == 1
    assert samples["kie_async_client_credits_total"] == 12
    assert samples["kie_async_client_task_duration_seconds_count"] == 1
    assert not [name for name in samples if name.startswith(("python_", "process_"))]


def test_there_are_metrics_before_anything_happens() -> None:
    samples = {
        (sample.name, sample.labels.get("kie_operation")): sample.value
        for family in text_string_to_metric_families(otel.PrometheusMetrics().text().decode())
        for sample in family.samples
        if sample.name.startswith("kie_async_")
    }
    assert samples == {
        ("kie_async_client_polls_total", None): 0,
        ("kie_async_client_unknown_submissions_total", "extend"): 0,
        ("kie_async_client_unknown_submissions_total", "upload_extend"): 0,
    }


def test_two_of_them_do_not_meet() -> None:
    first, second = otel.PrometheusMetrics(), otel.PrometheusMetrics()
    first.observer(Finished("t1", "extend", 90.0, 3, credits=12.0))
    assert b"kie_async_client_credits" in first.text()
    assert b"kie_async_client_credits" not in second.text()


@pytest.fixture
def _without_the_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "kie_async.otel")
    yield
    sys.modules["kie_async.otel"] = otel


@pytest.mark.usefixtures("_without_the_api")
def test_without_the_extra_the_remedy_is_said() -> None:
    with pytest.raises(ImportError, match=r'pip install "kie_async\[otel\]"'):
        importlib.import_module("kie_async.otel")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "kie-async"),
        ({"OTEL_SERVICE_NAME": "songs"}, "songs"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=choir"}, "choir"),
    ],
)
def test_the_service_has_a_name(environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert f'service_name="{name}"' in otel.PrometheusMetrics().text().decode()


def test_without_the_extra_for_metrics_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r'pip install "kie_async\[metrics\]"'):
        otel.PrometheusMetrics()
