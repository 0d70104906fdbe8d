"""Waiting in line: so many at once, and no more in all than can be kept. Lives on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.status import QueueFull


class Ticket:
    """A place in the line, or at work. Give it back with `Line.leave`.

    Attributes:
        weight: of what is to be done.
        called: set when it is this one's turn.
    """

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.called = asyncio.Event()


class Line:
    """A bounded line before a bounded number of workers, first come, first served.

    Args:
        places: how many are at work at once.
        most: weight of all that wait or are at work. One that is heavier gets in where it is alone.
        what: is being weighed, in the plural, for the error message.
        reason: of the error, UPPER_SNAKE_CASE.
        seconds: that a weight takes, for the time after which another try makes sense.
    """

    def __init__(
        self,
        places: int,
        most: int,
        what: str,
        reason: str,
        seconds: Callable[[int], float] = lambda weight: 1.0,
    ) -> None:
        self.places = places
        self.most = most
        self._what = what
        self._reason = reason
        self._seconds = seconds
        self._busy: set[Ticket] = set()
        self._waiting: list[Ticket] = []

    @property
    def busy(self) -> int:
        """How many are at work."""
        return len(self._busy)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def weight(self) -> int:
        """Of all that wait or are at work."""
        return sum(ticket.weight for ticket in (*self._busy, *self._waiting))

    def enter(self, weight: int = 1) -> Ticket:
        """A ticket, whose turn it is at once where a place is free.

        Raises:
            QueueFull: there is no room for so much more.
        """
        there = self.weight
        if there and there + weight > self.most:
            raise QueueFull(
                f"{there} {self._what} wait or are being worked on, at most {self.most} may: no room for {weight} more",
                reason=self._reason,
                retry_seconds=self._seconds(there + weight - self.most),
            )
        ticket = Ticket(weight)
        self._waiting.append(ticket)
        self._call()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket back, at work or still waiting."""
        self._busy.discard(ticket)
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._call()

    def ahead(self, ticket: Ticket) -> int:
        """How many wait before a ticket; 0 once it was called."""
        return self._waiting.index(ticket) if ticket in self._waiting else 0

    def _call(self) -> None:
        while self._waiting and self.busy < self.places:
            ticket = self._waiting.pop(0)
            self._busy.add(ticket)
            ticket.called.set()
