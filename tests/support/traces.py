"""Finished traces kept in memory, and read as the trees that they are."""

from router.tracing.spans import Attributes, Span
from router.tracing.tracer import Finished


class KeptTraces:
    """A `SpanSink` of a test."""

    def __init__(self) -> None:
        self.finished: list[Finished] = []
        self.closed = False

    def start(self) -> None:
        """Nothing to open."""

    def add(self, finished: Finished) -> None:
        self.finished.append(finished)

    async def close(self) -> None:
        self.closed = True

    def only(self) -> "Tree":
        assert len(self.finished) == 1, self.finished
        return self.last()

    def last(self) -> "Tree":
        return Tree(self.finished[-1])


class Tree:
    """One request's spans by what they are."""

    def __init__(self, finished: Finished) -> None:
        self.finished = finished
        self.root, *self.below = finished.spans

    def named(self, name: str) -> list[Span]:
        return [span for span in self.below if span.name == name]

    @property
    def attempts(self) -> list[Span]:
        return [span for span in self.below if span.kind == "client"]

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        """(replica, outcome) of each attempt."""
        return [
            (str(span.attributes["penstock.replica"]), str(span.attributes["penstock.attempt.outcome"]))
            for span in self.attempts
        ]

    def event(self, name: str) -> Attributes:
        """Of the root, the only one of this name."""
        found = [event.attributes for event in self.root.events if event.name == name]
        assert len(found) == 1, self.root.events
        return found[0]

    def check(self) -> None:
        """One tree: ids differ, parents exist, no child begins before its parent or ends after it."""
        spans = {span.span_id: span for span in self.finished.spans}
        assert len(spans) == len(self.finished.spans)
        for span in self.below:
            assert span.parent_id is not None
            parent = spans[span.parent_id]
            assert parent.start_s <= span.start_s <= span.end_s <= parent.end_s, span
        for span in self.finished.spans:
            assert all(span.start_s <= event.at_s <= span.end_s for event in span.events), span
            assert all(link.span_id in spans for link in span.links)
