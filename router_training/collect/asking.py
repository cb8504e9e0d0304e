"""Sends the requests of a collection, many at a time, and records every answer, verdict and failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from router_training.collect.bars import Bars
from router_training.collect.endpoint import CircuitBreaker, Endpoint, Refusal, Reply
from router_training.collect.judge import Case, read_verdict, reminder
from router_training.collect.recording import Answer, Failure, JudgeVerdict, Question, Recording
from router_training.collect.settings import Target
from router_training.data.first_tokens import summary

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Asker:
    """Sends requests concurrently, appends results to the recording, advances the progress bars."""

    recording: Recording
    concurrency: int
    bars: Bars

    async def ask_expert(self, target: Target, endpoint: Endpoint, questions: Iterable[Question]) -> None:
        """Send every question, record every answer and failure. Stops when the circuit breaker trips."""
        breaker = CircuitBreaker()

        async def ask(question: Question) -> None:
            reply = await endpoint.ask(question.messages)
            asked = target.asked(question.messages)
            self.recording.append(_answer(question.prompt_id, target.name, asked, reply))
            breaker.note(reply if isinstance(reply, Refusal) else None)
            self.bars.advance(target.name)

        await self._each(endpoint, questions, ask, breaker)
        self._say_if_given_up(target, breaker)

    async def ask_judge(self, target: Target, endpoint: Endpoint, cases: Iterable[Case]) -> None:
        """Send every case to the judge, record every verdict and failure. Stops when the circuit breaker trips."""
        breaker = CircuitBreaker()

        async def ask(case: Case) -> None:
            record = await _verdict(endpoint, case)
            if isinstance(record, Refusal):
                self.recording.append(_failure(case.prompt_id, case.expert, case.order, case.asked, record))
                breaker.note(record)
            else:
                self.recording.append(record)
                breaker.note(None)
            self.bars.advance(target.name)

        await self._each(endpoint, cases, ask, breaker)
        self._say_if_given_up(target, breaker)

    async def _each(
        self,
        endpoint: Endpoint,
        items: Iterable[Item],
        work: Callable[[Item], Awaitable[None]],
        breaker: CircuitBreaker,
    ) -> None:
        waiting = iter(items)
        async with endpoint, self.recording.kept_synced():
            workers = [asyncio.create_task(_work_through(waiting, work, breaker)) for _ in range(self.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def _say_if_given_up(self, target: Target, breaker: CircuitBreaker) -> None:
        if breaker.tripped_by is not None:
            self.bars.say(f"{target.name}: given up, {breaker.tripped_by}")


async def _work_through(
    waiting: Iterator[Item], work: Callable[[Item], Awaitable[None]], breaker: CircuitBreaker
) -> None:
    for item in waiting:
        if breaker.tripped_by is not None:
            return
        await work(item)


def _answer(prompt_id: str, expert: str, asked: str, reply: Reply | Refusal) -> Answer | Failure:
    if isinstance(reply, Refusal):
        return _failure(prompt_id, expert, None, asked, reply)
    said = reply.completion
    return Answer(
        prompt_id=prompt_id,
        expert=expert,
        asked=asked,
        text=said.text,
        output_tokens=said.output_tokens,
        finish_reason=said.finish_reason,
        seconds=round(reply.seconds, 4),
        attempts=reply.attempts,
        certainty=summary(said.logprobs) or None,
    )


def _failure(prompt_id: str, expert: str, order: str | None, asked: str, refusal: Refusal) -> Failure:
    seconds = round(refusal.seconds, 4)
    return Failure(prompt_id, expert, order, asked, refusal.reason, seconds, refusal.attempts)


async def _verdict(endpoint: Endpoint, case: Case) -> JudgeVerdict | Refusal:
    """The judge's verdict. After an unreadable reply the judge is asked once more."""
    first = await endpoint.ask(case.messages)
    if isinstance(first, Refusal):
        return first
    replies, seconds = [first.completion.text], first.seconds
    said = read_verdict(case.mode, case.token, replies[0])
    if said is None:
        again = await endpoint.ask(
            [
                *case.messages,
                {"role": "assistant", "content": replies[0] or "(nothing)"},
                {"role": "user", "content": reminder(case.mode, case.token)},
            ]
        )
        if isinstance(again, Refusal):
            return again
        replies.append(again.completion.text)
        seconds += again.seconds
        said = read_verdict(case.mode, case.token, replies[1])
    return JudgeVerdict(case.prompt_id, case.expert, case.order, case.asked, tuple(replies), said, round(seconds, 4))
