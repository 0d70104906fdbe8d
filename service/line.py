"""Waiting in line: so many at once, so many waiting, first come, first served. Lives on one event loop."""

from __future__ import annotations

import asyncio

from service.status import QueueFull


class Ticket:
    """A place in the line, or at work. Give it back with `Line.leave`."""

    def __init__(self) -> None:
        self.called = asyncio.Event()


class Line:
    """A bounded line before a bounded number of workers.

    Args:
        places: how many are at work at once.
        length: how many may wait.
        what: they are, in the plural, for the error message.
        reason: of the error, UPPER_SNAKE_CASE.
    """

    def __init__(self, places: int, length: int, what: str, reason: str) -> None:
        self.places = places
        self.length = length
        self._what = what
        self._reason = reason
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

    def check(self) -> None:
        """Raises QueueFull when there is no room for one more."""
        if self.busy >= self.places and self.waiting >= self.length:
            raise QueueFull(
                f"{self.busy} {self._what} are being worked on and {self.waiting} wait: no more are accepted",
                reason=self._reason,
                retry_seconds=1.0,
            )

    def enter(self) -> Ticket:
        """A ticket, whose turn it is at once where a place is free.

        Raises:
            QueueFull: too many wait.
        """
        self.check()
        ticket = Ticket()
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
