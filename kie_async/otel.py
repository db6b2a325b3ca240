"""OpenTelemetry: a span for each task, and metrics, from the events of sessions. Needs the extra ``otel``.

::

    observer = OpenTelemetryObserver()  # uses the global providers, as opentelemetry-instrument sets them
    async with kie_async.KieSession(kie_async.Settings(observer=observer)) as session: ...

A span begins when a submission is sent, and ends with its task. Its parent is the span that was current at the call.
With a journal, a process that continues with the task makes a child span, so that both are in one trace. A callback is
an event of the span, with a link to the span of the web request that brought it. The names of spans:

======================================  =======================================================
``kie.extend``, ``kie.upload_extend``   from the submission to the end of its task
``kie.follow``                          a task submitted elsewhere, from when it is followed to its end
======================================  =======================================================

Their kind is CLIENT, and their attributes are ``server.address``, ``kie.task.id``, ``kie.operation``, ``kie.model``,
``kie.quota.wait_time`` (s), ``kie.polls``, ``kie.detection_lag`` (s), ``kie.credits``, ``kie.charged``,
``kie.response.status_code`` (the code of the service) and ``error.type`` (the class of the error). Events of a span:
``kie.task.stage``, ``kie.poll.failed``, ``kie.callback``, ``kie.task.paused`` (its last waiter has left) and
``kie.session.closed``; the last two end the span, though the task goes on.

The names of metrics, all with the prefix ``kie_async.client.``; none has the id of a task as an attribute:

========================  =========  ================================================================================
``submissions``           counter    ``kie.operation``, ``kie.response.status_code``, ``error.type``
``unknown_submissions``   counter    ``kie.operation``; submissions whose answer was lost, perhaps charged
``quota.wait_time``       histogram  ``kie.operation``; seconds that submissions waited for the quota
``task.duration``         histogram  ``kie.operation``, ``error.type``; seconds from submission until the end is seen
``task.detection_lag``    histogram  ``kie.operation``; seconds from the end until it is seen, see ``events.Finished``
``credits``               counter    ``kie.operation``; the cost of the tasks that were followed to their end
``polls``                 counter    ``error.type``
``callbacks``             counter    ``kie.callback.result`` (accepted, ignored, refused), ``http.response.status_code``
========================  =========  ================================================================================

URLs in texts are cut to their host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kie_async import _package
from kie_async.events import (
    CallbackReceived,
    Context,
    Event,
    Finished,
    Followed,
    Observer,
    Paused,
    Polled,
    PollFailed,
    StageReached,
    SubmissionFailed,
    SubmissionUnknown,
    Submitted,
    Submitting,
    clean,
    guarded,
    log_event,
)

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context as OtelContext
    from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    raise ImportError(f'pip install "kie_async[otel]", or "kie_async[metrics]" for /metrics ({_error})') from None

_SCOPE = "kie_async"
_SERVICE = "kie-async"  # the name of the service in the metrics, where nobody gives another
_OK = 200  # of a submission that was accepted, and of a callback
_TRACEPARENT = "traceparent"
_OPERATIONS = frozenset({"extend", "upload_extend"})  # any other word of the service's would make a metric grow
_CLOSED = "SessionError"  # the session was closed; the task goes on
_W3C = TraceContextTextMapPropagator()  # alone, whatever the program uses: no baggage gets into the journal

# Upper bounds of histograms, in seconds.
_DURATIONS = (10, 20, 30, 45, 60, 75, 90, 105, 120, 150, 180, 240, 300, 450, 600, 900, 1800)
_LAGS = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 30, 60)
_WAITS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class OpenTelemetryObserver:
    """An observer that makes spans and metrics of events; sessions of one event loop may share it.

    Args:
        observer: also called with each event; by default it logs them, as a session without this observer does.
        tracer_provider: by default the global one.
        meter_provider: by default the global one.
        server_address: the host of the API, for the attribute ``server.address`` of the spans.
    """

    def __init__(
        self,
        observer: Observer = log_event,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        server_address: str = "api.kie.ai",
    ) -> None:
        spans = _TaskSpans(trace.get_tracer(_SCOPE, _package.__version__, tracer_provider), server_address)
        self._emit = _each(observer, spans.observe, _Instruments(meter_provider).observe)

    def __call__(self, event: Event) -> None:
        """Take an event."""
        self._emit(event)


def _each(*observers: Observer) -> Observer:
    """Call these one after the other, whatever one of them raises."""
    all_guarded = [guarded(observer) for observer in observers]

    def emit(event: Event) -> None:
        for observer in all_guarded:
            observer(event)

    return emit


def _present(attributes: Mapping[str, object]) -> dict[str, Any]:
    """Leave out what is None or empty, and make texts fit to show."""
    return {
        name: clean(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None and value != ""
    }


def _error_of(event: SubmissionFailed | SubmissionUnknown) -> str:
    return "SubmitUnknownError" if isinstance(event, SubmissionUnknown) else event.error


# ---------------------------------------------------------------- traces


class _TaskSpans:
    """The open spans: of submissions by their ``traceparent``, then of tasks by their ids."""

    def __init__(self, tracer: trace.Tracer, server_address: str) -> None:
        self._tracer = tracer
        self._server_address = server_address
        self._submissions: dict[str, Span] = {}
        self._tasks: dict[str, Span] = {}

    def observe(self, event: Event) -> None:
        """Begin, extend or end a span."""
        match event:
            case Submitting():
                self._submitting(event)
            case Submitted():
                self._task(event.task_id).end()  # a callback may have named the task, and made somebody follow it
                span = self._tasks[event.task_id] = self._submission(event.context)
                span.set_attribute("kie.task.id", event.task_id)
            case SubmissionFailed() | SubmissionUnknown():
                self._submission_failed(event)
            case Followed():
                self._followed(event)
            case StageReached():
                self._task(event.task_id).add_event("kie.task.stage", {"kie.stage": event.stage})
            case PollFailed():
                attributes = _present({"error.type": event.error, "kie.reason": event.reason})
                self._task(event.task_id).add_event("kie.poll.failed", attributes)
            case CallbackReceived():
                self._callback_received(event)
            case Paused():
                span = self._tasks.pop(event.task_id, INVALID_SPAN)
                span.add_event("kie.task.paused")
                span.end()
            case Finished():
                self._finished(event)

    def _submission(self, context: Context) -> Span:
        """Take the span of a submission."""
        return self._submissions.pop(context.get(_TRACEPARENT, ""), INVALID_SPAN)

    def _task(self, task_id: str) -> Span:
        return self._tasks.get(task_id, INVALID_SPAN)

    def _start(self, name: str, parent: OtelContext | None, attributes: Mapping[str, object]) -> Span:
        attributes = _present({"server.address": self._server_address, **attributes})
        return self._tracer.start_span(name, parent, SpanKind.CLIENT, attributes)

    def _submitting(self, event: Submitting) -> None:
        attributes = {"kie.operation": event.operation, "kie.model": event.model, "kie.quota.wait_time": event.waited}
        span = self._start(f"kie.{event.operation}", None, attributes)
        _W3C.inject(event.context, trace.set_span_in_context(span))
        self._submissions[event.context.get(_TRACEPARENT, "")] = span

    def _submission_failed(self, event: SubmissionFailed | SubmissionUnknown) -> None:
        span = self._submission(event.context)
        charged = "maybe" if isinstance(event, SubmissionUnknown) else event.charged
        span.set_attributes(_present({"kie.charged": charged, "kie.response.status_code": event.code}))
        _end_with_error(span, _error_of(event), event.reason)

    def _followed(self, event: Followed) -> None:
        if event.task_id not in self._tasks:  # sessions that share this observer may follow one task
            parent = _W3C.extract(event.context) if event.context else None
            self._tasks[event.task_id] = self._start("kie.follow", parent, {"kie.task.id": event.task_id})

    def _callback_received(self, event: CallbackReceived) -> None:
        span, request = self._task(event.task_id), trace.get_current_span().get_span_context()
        attributes = _present({"kie.stage": event.stage, "kie.callback.note": event.note})
        span.add_event("kie.callback", attributes)
        if request.is_valid:
            span.add_link(request, attributes)

    def _finished(self, event: Finished) -> None:
        span = self._tasks.pop(event.task_id, INVALID_SPAN)
        attributes = {
            "kie.operation": event.operation,
            "kie.polls": event.polls,
            "kie.detection_lag": event.lag,
            "kie.credits": event.credits,
            "kie.response.status_code": event.code,
        }
        span.set_attributes(_present(attributes))
        if event.error and event.error != _CLOSED:
            _end_with_error(span, event.error, event.reason)
            return
        if event.error:
            span.add_event("kie.session.closed")
        span.end()


def _end_with_error(span: Span, error: str, reason: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR, clean(reason)))
    span.end()


# ---------------------------------------------------------------- metrics


class _Instruments:
    """What is counted and measured."""

    def __init__(self, provider: metrics.MeterProvider | None) -> None:
        meter = metrics.get_meter(_SCOPE, _package.__version__, provider)

        def histogram(name: str, bounds: tuple[float, ...], description: str) -> metrics.Histogram:
            name = f"kie_async.client.{name}"
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=bounds)

        def counter(name: str, unit: str, description: str) -> metrics.Counter:
            return meter.create_counter(f"kie_async.client.{name}", f"{{{unit}}}", description)

        self._submissions = counter("submissions", "submission", "Submissions, by the code of their answer.")
        self._unknown = counter("unknown_submissions", "submission", "Submissions without an answer, perhaps charged.")
        self._wait = histogram("quota.wait_time", _WAITS, "How long a submission waited for the quota.")
        self._duration = histogram("task.duration", _DURATIONS, "From the submission until the end was seen.")
        self._lag = histogram("task.detection_lag", _LAGS, "From the end of a task until it was seen.")
        self._credits = counter("credits", "credit", "Credits that tasks have cost.")
        self._polls = counter("polls", "poll", "Reads of record-info.")
        self._callbacks = counter("callbacks", "callback", "Callbacks that came in, by what became of them.")

    def begin(self) -> None:
        """Have polls and unknown submissions at 0, so that the first one of them is seen as a rise."""
        self._polls.add(0)
        for operation in sorted(_OPERATIONS):
            self._unknown.add(0, {"kie.operation": operation})

    def observe(self, event: Event) -> None:
        """Count an event."""
        match event:
            case Submitting():
                self._wait.record(event.waited, _operation(event))
            case Submitted():
                self._submissions.add(1, {**_operation(event), "kie.response.status_code": _OK})
            case SubmissionFailed() | SubmissionUnknown():
                self._submission_failed(event)
            case Polled():
                self._polls.add(1)
            case PollFailed():
                self._polls.add(1, _present({"error.type": event.error}))
            case CallbackReceived():
                result = "refused" if event.status != _OK else "ignored" if event.note else "accepted"
                attributes: dict[str, Any] = {"kie.callback.result": result, "http.response.status_code": event.status}
                self._callbacks.add(1, attributes)
            case Finished():
                self._finished(event)

    def _submission_failed(self, event: SubmissionFailed | SubmissionUnknown) -> None:
        operation = _operation(event)
        attributes = _present({"error.type": _error_of(event), "kie.response.status_code": event.code})
        self._submissions.add(1, {**operation, **attributes})
        if isinstance(event, SubmissionUnknown):
            self._unknown.add(1, operation)

    def _finished(self, event: Finished) -> None:
        operation = _operation(event)
        if event.error != _CLOSED:
            self._duration.record(event.seconds, {**operation, **_present({"error.type": event.error})})
        if event.lag is not None:
            self._lag.record(event.lag, operation)
        if event.credits is not None:
            self._credits.add(event.credits, operation)


def _operation(event: Submitting | Submitted | SubmissionFailed | SubmissionUnknown | Finished) -> dict[str, Any]:
    return {"kie.operation": event.operation if event.operation in _OPERATIONS else "_OTHER"}


class PrometheusMetrics:
    """Collects metrics of this process until Prometheus asks for them. Needs the extra ``metrics``.

    ::

        scraped = PrometheusMetrics()
        settings = kie_async.Settings(observer=scraped.observer)
        ...
        return Response(scraped.text(), content_type=scraped.content_type)

    Args:
        observer: called with each event too; by default they are logged.

    Attributes:
        observer: makes the metrics alone; ``OpenTelemetryObserver(scraped.observer)`` makes spans as well.
        content_type: of ``text()``.

    The service is named ``kie-async``, unless ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` names it.

    Raises:
        ImportError: the extra is not installed; the message says how to install it.
    """

    def __init__(self, observer: Observer = log_event) -> None:
        try:
            import prometheus_client
            from opentelemetry.exporter.prometheus import PrometheusMetricReader
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        except ImportError as error:
            raise ImportError(f'/metrics needs an extra: pip install "kie_async[metrics]" ({error})') from None
        self._registry = prometheus_client.CollectorRegistry()
        reader = PrometheusMetricReader(registry=self._registry)
        named = Resource({SERVICE_NAME: _SERVICE}).merge(OTELResourceDetector().detect())  # the environment may name it
        provider = MeterProvider([reader], Resource.create().merge(named), shutdown_on_exit=False)
        instruments = _Instruments(provider)
        instruments.begin()
        self.observer = _each(observer, instruments.observe)
        self.content_type = prometheus_client.CONTENT_TYPE_LATEST
        self._generate = prometheus_client.generate_latest

    def text(self) -> bytes:
        """Return the metrics as they stand, in the text format of Prometheus."""
        return self._generate(self._registry)
