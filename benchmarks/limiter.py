"""Limiters as the server sees them: how much of the quota is used, and the most that arrives in any window of it.

Everybody wants to submit at once. A submission arrives half a round trip after it was let through, its answer half a
round trip later; nothing is sent, the ways are slept. "jitter" draws each way from 0.2 to 1.8 times the half. In
"leavers" as many again come and go away while they wait, at random. In "429" the server refuses every 50th arrival
and asks for 12 s of peace; what is sent in spite of that is counted behind a "+", and keeping it costs some use.

A cell says how much was used, and the most in any window. Used is measured against the bursts of a perfect limiter
without a network: (arrivals / limit - 1) windows, over the time from the first arrival to the last. Ours holds a permit
until the answer is here, so it cannot use more than window / (window + margin + round trip); in exchange no jitter can
push one submission too many into a window.

Ours runs on a virtual clock with the real quota, 20 in 10 s. The others ask the system for the time, so all run once
more on the real clock, with 20 in 1 s and all other times a tenth too. There a limiter without a margin, which lets
through exactly one window later, can be seen with two bursts in a window by a fraction of a millisecond.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress

import attrs

from benchmarks._limiters import PACKAGES, SUBJECTS, Make, ours
from benchmarks._report import table, versions
from benchmarks._virtual_loop import VirtualLoop
from kie_async.limiter import Limiter

LIMIT, WINDOW = 20, 10.0
REFUSED_EVERY, PEACE = 50, 12.0  # the server's 429s, and its Retry-After in s
CHUNK = 50  # acquisitions timed at once


@attrs.frozen
class Scenario:
    """What happens between the limiter and the server; times are those of the real quota.

    Attributes:
        latency: one round trip, s.
        jitter: each way takes up to so much more or less, as a share.
        leavers: who go away while they wait, as a share of those who stay.
        refuses: whether the server refuses some.
    """

    name: str
    latency: float = 0.0
    jitter: float = 0.0
    leavers: float = 0.0
    refuses: bool = False


SCENARIOS = (
    Scenario("0 ms"),
    Scenario("50 ms", 0.05),
    Scenario("400 ms", 0.4),
    Scenario("50 ms, jitter", 0.05, 0.8),
    Scenario("400 ms, jitter", 0.4, 0.8),
    Scenario("50 ms, leavers", 0.05, leavers=1.0),
    Scenario("50 ms, 429", 0.05, refuses=True),
)


@attrs.define
class Run:
    """One limiter in one scenario.

    Attributes:
        scale: how long a second is.
        arrivals: when the server saw a submission.
        against: submissions sent though the server had asked for peace.
    """

    limiter: Limiter
    scenario: Scenario
    requests: int
    scale: float
    chance: random.Random
    arrivals: list[float] = attrs.field(factory=list)
    against: int = 0
    _peace: float = 0.0
    _waiting: set[asyncio.Task[None]] = attrs.field(factory=set)

    async def run(self) -> None:
        """Let everybody submit, and wait until the last is answered."""
        loop, scenario = asyncio.get_running_loop(), self.scenario
        everybody = [loop.create_task(self._submit()) for _ in range(int(self.requests * (1 + scenario.leavers)))]
        leavers = self.chance.sample(everybody, len(everybody) - self.requests)
        length = self.requests / LIMIT * WINDOW * self.scale
        for leaver in leavers:
            loop.call_later(self.chance.uniform(0, length), self._leave, leaver)
        await asyncio.gather(*everybody, return_exceptions=True)
        assert all(task.cancelled() or task.exception() is None for task in everybody)

    def _leave(self, task: asyncio.Task[None]) -> None:
        if task in self._waiting:
            task.cancel()

    async def _submit(self) -> None:
        is_retry = False
        while await self._send(is_retry=is_retry):
            is_retry = True

    async def _send(self, *, is_retry: bool) -> bool:
        """Submit once; say whether it was refused."""
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            permit = await self.limiter.acquire(is_retry=is_retry)
        finally:
            self._waiting.discard(task)
        self.against += self._now() < self._peace
        await self._way()
        self.arrivals.append(self._now())
        refused = self.scenario.refuses and len(self.arrivals) % REFUSED_EVERY == 0
        await self._way()
        permit.release()
        if refused:
            self._peace = max(self._peace, self._now() + PEACE * self.scale)
            self.limiter.penalize(PEACE * self.scale)
        return refused

    async def _way(self) -> None:
        spread = self.chance.uniform(1 - self.scenario.jitter, 1 + self.scenario.jitter)
        await asyncio.sleep(self.scenario.latency / 2 * self.scale * spread)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def used(self) -> float:
        """How much of the quota was used, as a share, up to the last burst that is whole."""
        bursts = len(self.arrivals) // LIMIT
        stamps = sorted(self.arrivals)[: bursts * LIMIT]
        return (bursts - 1) * WINDOW * self.scale / (stamps[-1] - stamps[0])

    @property
    def most(self) -> int:
        """The most arrivals in any window."""
        stamps = sorted(self.arrivals)
        ends = [bisect_right(stamps, start + WINDOW * self.scale * (1 - 1e-9)) for start in stamps]
        return max(end - place for place, end in enumerate(ends))

    @property
    def cell(self) -> str:
        """What stands in the table."""
        return f"{self.used:.1%} {self.most}" + (f" +{self.against}" if self.scenario.refuses else "")


async def runs(make: Make, requests: int, scale: float, seed: int) -> list[Run]:
    """All scenarios, each with a limiter of its own, at once but with their bursts apart, as they share one thread."""

    async def later(run: Run, place: int) -> None:
        await asyncio.sleep(place * WINDOW * scale / len(SCENARIOS))
        await run.run()

    found = [
        Run(make(LIMIT, WINDOW * scale), scenario, requests, scale, random.Random(seed))  # noqa: S311  # a seeded plan
        for scenario in SCENARIOS
    ]
    await asyncio.gather(*(later(run, place) for place, run in enumerate(found)))
    return found


def virtually(requests: int, seed: int) -> list[Run]:
    """All scenarios with our limiter, on a virtual clock and with the real quota."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(runs(ours, requests, 1.0, seed))


def really(requests: int, seed: int, only: list[str]) -> Iterator[tuple[str, ...]]:
    """The rows of the real clock, at a tenth."""
    for name in only:
        try:
            found = asyncio.run(runs(SUBJECTS[name], requests, 0.1, seed))
        except ImportError:
            yield name, *["not installed"] * len(SCENARIOS)
        else:
            yield name, *(each.cell for each in found)


async def chunk(limiter: Limiter, *, release: bool) -> float:
    """Microseconds of one acquisition of some in a row that wait for nothing."""
    started = time.perf_counter()
    for _ in range(CHUNK):
        permit = await limiter.acquire()
        if release:
            permit.release()
    return (time.perf_counter() - started) / CHUNK * 1e6


async def costs(count: int, only: list[str]) -> Iterator[tuple[str, ...]]:
    """What an uncontended acquisition costs in the quickest chunk, by turns; the ratio is to ours with its release."""
    alone, whole = "kie_async, acquire alone", "kie_async, acquire and release"
    limiters = {alone: ours(count, 60.0), whole: ours(count, 60.0)}
    for name in only:
        with suppress(ImportError):
            limiters.setdefault(name, SUBJECTS[name](count, 60.0))
    limiters.pop("kie_async", None)
    best = dict.fromkeys(limiters, float("inf"))
    for _ in range(count // CHUNK):
        for name, limiter in limiters.items():
            best[name] = min(best[name], await chunk(limiter, release=name != alone))
    return ((name, f"{taken:.2f}", f"{taken / best[whole]:.2f}") for name, taken in best.items())


def main(arguments: list[str]) -> int:
    """Measure, and print the tables; 1 if ours ever let too many through."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks limiter", description=__doc__)
    parser.add_argument("--requests", type=int, default=100, help="on the real clock")
    parser.add_argument("--virtual", type=int, default=1000, help="requests on the virtual clock")
    parser.add_argument("--acquisitions", type=int, default=10_000, help="timed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    options = parser.parse_args(arguments)
    print(versions(*PACKAGES))
    exact = virtually(options.virtual, options.seed)
    rows = [("kie_async, virtual clock", *(each.cell for each in exact))]
    rows += really(options.requests, options.seed, options.only)
    table(("used, most in a window", *(scenario.name for scenario in SCENARIOS)), rows)
    print()
    table(("uncontended", "µs", "ratio"), asyncio.run(costs(options.acquisitions, options.only)))
    return int(any(each.most > LIMIT for each in exact))
