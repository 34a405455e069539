"""What has been spent, what is under way, and what the rest would cost: US dollars, counted by the endpoint or estimated.

An estimate takes the length of a request's texts in bytes, a quarter of which are tokens, or, once the endpoint has counted twenty
requests, the share that it counted. An attempt that may have been billed without being counted (a lost reply) costs its estimate.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dmoerm.labeling.plan import Plan
from dmoerm.labeling.questions import AnyQuestion
from dmoerm.labeling.replies import RETRIED, Outcome, Usage
from dmoerm.labeling.store import Store

__all__ = ["MAYBE_BILLED", "Costs", "Estimate", "estimate_open", "estimate_rest"]

_BYTES_A_TOKEN = 4
"""Of UTF-8 text under the tokenizers of current models: about four for English, three for Chinese."""
_TOKENS_A_VERDICT, _TOKENS_A_REASON = 12, 40
_ENOUGH = 20
MAYBE_BILLED = frozenset({Outcome.UNDER_WAY, Outcome.UNREAD, Outcome.ANSWERED, *RETRIED} - {Outcome.UNREACHED})
"""Outcomes of attempts that may stand on the bill although no tokens were counted."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan still asks for.

    Attributes:
        calls: requests.
        input_tokens: of all of them, estimated.
        output_tokens: likewise.
        dollars: None where the price is not known.
        answered: questions that need no call.
    """

    calls: int
    input_tokens: int
    output_tokens: int
    dollars: float | None
    answered: int


class Costs:
    """Keeps the account of one run; starts from what the store says about earlier ones."""

    def __init__(self, plan: Plan, store: Store | None) -> None:
        self.prices = plan.prices
        self.unknown = 0
        """Attempts that may have been billed and for which no tokens were counted, in all runs of the store."""
        self._plan = plan
        self._dollars = self._under_way = 0.0
        self._counted = self._bytes = self._input = self._output = 0
        self._fixed_bytes = len((plan.template.system + plan.template.user).encode())
        if store is not None:
            self._look_back(store)

    def _look_back(self, store: Store) -> None:
        uncounted = store.uncounted(MAYBE_BILLED)
        self.unknown = sum(uncounted.values())
        if self.prices is None:
            return
        # Other models of this store, too, at this one's prices: better than to leave them out of a limit.
        self._dollars = self.prices.cost(store.counted())
        if not uncounted:
            return
        planned, total = 0, 0.0
        for question in self._plan.questions():
            estimate = self.estimate(question)
            planned, total = planned + 1, total + estimate
            self._dollars += uncounted.pop(question.key, 0) * estimate
        if planned:  # what was asked under other settings is held to be of average length
            self._dollars += sum(uncounted.values()) * total / planned

    @property
    def spent(self) -> float | None:
        """So far, without what is under way; None without prices."""
        return None if self.prices is None else self._dollars

    def expected_usage(self, question: AnyQuestion) -> Usage:
        """Tokens of one request."""
        length = self._length(question)
        reply = len(question.names) * _TOKENS_A_VERDICT + _TOKENS_A_REASON * self._plan.template.reason
        guess = Usage(length // _BYTES_A_TOKEN + 1, min(reply, self._plan.options.max_tokens))
        if self._counted == 0:
            return guess
        measured = Usage(round(self._input * length / self._bytes), round(self._output / self._counted))
        if self._counted >= _ENOUGH:
            return measured
        # A few counts are little to go by, but a limit must not be overrun because the guess was low.
        return Usage(max(guess.input_tokens, measured.input_tokens), max(guess.output_tokens, measured.output_tokens))

    def estimate(self, question: AnyQuestion) -> float:
        """US dollars of one request; 0 without prices."""
        return 0.0 if self.prices is None else self.prices.cost(self.expected_usage(question))

    def expected_with(self, question: AnyQuestion) -> float:
        """What will have been spent once everything under way and this question are answered."""
        return self._dollars + self._under_way + self.estimate(question)

    @contextlib.contextmanager
    def under_way(self, question: AnyQuestion) -> Iterator[None]:
        """While its request is under way."""
        estimate = self.estimate(question)
        self._under_way += estimate
        try:
            yield
        finally:
            self._under_way -= estimate

    def add(self, usage: Usage | None, question: AnyQuestion, *, billed: bool = True) -> None:
        """Take one attempt into the account; without usage it is estimated where it may have been billed."""
        if usage is None:
            self.unknown += billed
            self._dollars += self.estimate(question) if billed else 0.0
            return
        self._counted += 1
        self._bytes += self._length(question)
        self._input += usage.input_tokens
        self._output += usage.output_tokens
        self._dollars += 0.0 if self.prices is None else self.prices.cost(usage)

    def _length(self, question: AnyQuestion) -> int:
        texts = (*question.shown().values(), *question.listed().values())
        return self._fixed_bytes + sum(len(text.encode()) for text in texts)


def estimate_open(plan: Plan) -> Estimate:
    """What is left to ask, by the plan's own store where there is one; nothing is sent."""
    if not plan.options.store.is_file():
        return estimate_rest(plan, None)
    with Store(plan.options.store, write=False) as store:
        return estimate_rest(plan, store)


def estimate_rest(plan: Plan, store: Store | None) -> Estimate:
    """What is left to ask, in calls, tokens and dollars; nothing is sent."""
    costs = Costs(plan, None)
    answered = set() if store is None else set(store.answers(plan.settings.fingerprint))
    calls = input_tokens = output_tokens = done = 0
    for question in plan.questions():
        if question.key in answered:
            done += 1
            continue
        usage = costs.expected_usage(question)
        calls += 1
        input_tokens += usage.input_tokens
        output_tokens += usage.output_tokens
    dollars = None if costs.prices is None else costs.prices.cost(Usage(input_tokens, output_tokens))
    return Estimate(calls, input_tokens, output_tokens, dollars, done)
