"""Answers that cost nothing: judgements from a file, and stored replies read again by a newer parser."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from dmoerm.labeling.judge import Exchange
from dmoerm.labeling.judged import JudgedPair
from dmoerm.labeling.labels import matching_replies
from dmoerm.labeling.plan import LabelPlan
from dmoerm.labeling.questions import Question
from dmoerm.labeling.replies import Outcome, read_reply
from dmoerm.labeling.store import Store

__all__ = ["import_judgements", "reparse"]

_TOGETHER = 500


async def import_judgements(plan: LabelPlan, store: Store, judged: Sequence[JudgedPair], origin: str) -> int:
    """Answer open questions of a plan with the verdicts of a file; returns how many.

    A question counts as answered only where the file has a verdict on each of its points in that presentation order. The answers stand
    under the plan's settings, with `origin` beside them; whether that judge is as good as the recipe's is the user's decision.
    """
    answered = set(store.answers(plan.settings.fingerprint))
    settings = asdict(plan.settings)

    async def take(question: Question, body: bytes) -> None:
        attempt = await store.begin(question, settings, origin=origin)
        await store.finish(attempt, Exchange(Outcome.UNREAD, 200, body), 0.0)
        store.settle(attempt, question.key, read_reply(body, question.names))

    waiting: list[asyncio.Task[None]] = []
    count = 0
    for question, body in matching_replies(plan.questions(), judged):
        if question.key in answered:
            continue
        answered.add(question.key)
        count += 1
        waiting.append(asyncio.create_task(take(question, body)))
        if len(waiting) == _TOGETHER:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)
    return count


def reparse(store: Store) -> tuple[int, int, int]:
    """Read every stored reply again, oldest first; returns questions answered before and after, and replies read."""
    before = len(store.answers())
    replies = 0
    batch = []
    for reply in store.replies():
        replies += 1
        batch.append((reply.attempt, reply.key, read_reply(reply.body, reply.asked, reply.answers)))
        if len(batch) == _TOGETHER:
            store.settle_now(batch)
            batch = []
    store.settle_now(batch)
    return before, len(store.answers()), replies
