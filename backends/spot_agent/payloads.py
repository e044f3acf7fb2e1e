"""What the clouds' payloads mean, without any I/O: text in, notices out.

Where an event is certain and one of its fields is not, the event counts: a reclaim is never missed for a date that cannot be read.
Sources: each cloud's documentation of its metadata service, and docs/spot-agent.md for the choices made here.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Final

from backends.spot_agent.notice import Kind, Notice, Provider, Reading

UNKNOWN_LEAD_S: Final = (
    30.0  # of a reclaim whose time cannot be read; what the gateway takes, too, where no deadline is said
)
GCP_LEAD_S: Final = 30.0  # from `preempted` to the ACPI signal, best effort
GCP_MAINTENANCE_LEAD_S: Final = 60.0  # the shortest there is; machines with GPUs usually get an hour
_SHOWN: Final = 80  # characters of what could not be read
_NAMED: Final = 128  # characters of an id or a word of theirs: whatever they send, ids and log lines stay short


class UnreadableError(ValueError):
    """Not what this service sends; the message shows its beginning."""


def aws_instance_action(body: str, observed_unix_s: float) -> Reading:
    """Of `spot/instance-action`; raises UnreadableError. Any action at all takes the machine away.

    Hibernation begins with the notice, so its deadline is the moment it is seen.
    """
    document = _object(body)
    action = document.get("action")
    if not isinstance(action, str) or not action:
        raise UnreadableError(f"no action in {_shown(body)}")
    action = _short(action)
    said = document.get("time")
    deadline_unix_s = _iso(said)
    if deadline_unix_s is None:
        deadline_unix_s = observed_unix_s + UNKNOWN_LEAD_S
    if action == "hibernate":
        deadline_unix_s = min(deadline_unix_s, observed_unix_s)
    identity = f"{action}@{_short(str(said))}"
    return _one(
        Notice(Provider.AWS, Kind.RECLAIM, identity, observed_unix_s, deadline_unix_s, f"spot interruption ({action})")
    )


def aws_rebalance(body: str, observed_unix_s: float) -> Reading:
    """Of `events/recommendations/rebalance`; raises UnreadableError. There is no deadline: the reclaim may come or not."""
    said = _object(body).get("noticeTime")
    if not isinstance(said, str) or not said:
        raise UnreadableError(f"no noticeTime in {_shown(body)}")
    identity = f"rebalance@{_short(said)}"
    return _one(Notice(Provider.AWS, Kind.REBALANCE, identity, observed_unix_s, None, "rebalance recommendation"))


def gcp_preempted(body: str, observed_unix_s: float) -> Reading:
    """Of `instance/preempted`; raises UnreadableError."""
    match body.strip().upper():
        case "FALSE":
            return Reading()
        case "TRUE":
            identity = f"preempted@{observed_unix_s:.0f}"  # a machine can be started again and preempted again
            deadline_unix_s = observed_unix_s + GCP_LEAD_S
            return _one(
                Notice(Provider.GCP, Kind.RECLAIM, identity, observed_unix_s, deadline_unix_s, "instance preempted")
            )
        case _:
            raise UnreadableError(f"neither TRUE nor FALSE: {_shown(body)}")


def gcp_maintenance(body: str, observed_unix_s: float) -> Reading:
    """Of `instance/maintenance-event`; raises UnreadableError. A live migration is a pause of about a second, and no notice."""
    match body.strip().upper():
        case "NONE":
            return Reading()
        case "MIGRATE_ON_HOST_MAINTENANCE":
            return Reading(remarks=("live migration ahead: the machine pauses and goes on, nothing is told",))
        case "TERMINATE_ON_HOST_MAINTENANCE":
            identity = f"maintenance@{observed_unix_s:.0f}"
            deadline_unix_s = observed_unix_s + GCP_MAINTENANCE_LEAD_S
            return _one(
                Notice(
                    Provider.GCP, Kind.MAINTENANCE, identity, observed_unix_s, deadline_unix_s, "stop for maintenance"
                )
            )
        case _:
            raise UnreadableError(f"no maintenance event: {_shown(body)}")


_AZURE_KINDS: Final = {
    "preempt": Kind.RECLAIM,
    "terminate": Kind.RECLAIM,
    "reboot": Kind.MAINTENANCE,
    "redeploy": Kind.MAINTENANCE,
}


def azure_events(body: str, observed_unix_s: float, *, machine: str) -> Reading:
    """Of Scheduled Events, those that name this machine; raises UnreadableError where there is no list of events.

    An event that has started has no NotBefore: its deadline is the moment it is seen.
    """
    events = _object(body).get("Events")
    if not isinstance(events, list):
        raise UnreadableError(f"no Events in {_shown(body)}")
    notices: list[Notice] = []
    remarks: list[str] = []
    for event in events:
        found = _azure_event(event, observed_unix_s, machine.lower())
        if isinstance(found, Notice):
            notices.append(found)
        elif found is not None:
            remarks.append(found)
    return Reading(tuple(notices), tuple(remarks))


def _azure_event(event: object, observed_unix_s: float, machine: str) -> Notice | str | None:
    """A notice, a remark, or None where it is somebody else's."""
    if not isinstance(event, dict):
        return f"an event that is none: {_shown(str(event))}"
    resources = event.get("Resources")
    named = {str(name).lower() for name in resources} if isinstance(resources, list) else set()
    if machine not in named:
        return None
    event_id, said = event.get("EventId"), str(event.get("EventType"))
    if not isinstance(event_id, str) or not 0 < len(event_id) <= _NAMED:
        return f"an event without a usable EventId: {_shown(str(event))}"
    if said.lower() == "freeze":
        return f"freeze ahead ({event_id}): the machine pauses for seconds and goes on, nothing is told"
    kind = _AZURE_KINDS.get(said.lower())
    if kind is None:
        return f"an event of an unknown type: {_short(said)}"
    not_before = event.get("NotBefore")
    if str(event.get("EventStatus")).lower() == "started" or not not_before:
        deadline_unix_s = observed_unix_s
    else:
        read = _http_date(not_before)
        deadline_unix_s = observed_unix_s + UNKNOWN_LEAD_S if read is None else read
    alone = named == {machine}  # a word from one machine starts the event for all that it names
    what = f"{said.lower()} scheduled by the {'user' if event.get('EventSource') == 'User' else 'platform'}"
    return Notice(Provider.AZURE, kind, event_id, observed_unix_s, deadline_unix_s, what, may_hasten=alone)


def azure_start_requests(event_ids: list[str]) -> str:
    """The body that lets these events begin now."""
    return json.dumps({"StartRequests": [{"EventId": event_id} for event_id in event_ids]})


def _one(notice: Notice) -> Reading:
    return Reading((notice,))


def _object(body: str) -> Mapping[str, object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UnreadableError(f"not JSON: {_shown(body)}") from None
    if not isinstance(document, dict):
        raise UnreadableError(f"not a JSON object: {_shown(body)}")
    return document


def _iso(said: object) -> float | None:
    """Unix seconds of an ISO date; one without a zone is UTC, as AWS writes them."""
    if not isinstance(said, str):
        return None
    try:
        read = datetime.fromisoformat(said)
        return _finite((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None


def _http_date(said: object) -> float | None:
    """Unix seconds of `Mon, 19 Sep 2016 18:29:47 GMT`, or of an ISO date."""
    if not isinstance(said, str):
        return None
    try:
        read = parsedate_to_datetime(said)
        return _finite((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):  # all of which garbage makes the library raise
        return _iso(said)


def _finite(seconds: float) -> float | None:
    return seconds if isfinite(seconds) else None


def _short(text: str) -> str:
    return text if len(text) <= _NAMED else text[:_NAMED]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
