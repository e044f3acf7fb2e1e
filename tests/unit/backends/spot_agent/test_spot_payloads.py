"""What each cloud's payload means; and that garbage is a complaint, never a crash and never a notice."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.spot_agent.notice import Kind, Notice, Provider, Reading
from backends.spot_agent.payloads import (
    GCP_LEAD_S,
    GCP_MAINTENANCE_LEAD_S,
    UNKNOWN_LEAD_S,
    UnreadableError,
    aws_instance_action,
    aws_rebalance,
    azure_events,
    azure_start_requests,
    gcp_maintenance,
    gcp_preempted,
)

NOW = 1_800_000_000.0
azure = partial(azure_events, machine="vm_1")
PARSERS: list[Callable[[str, float], Reading]] = [
    aws_instance_action,
    aws_rebalance,
    gcp_preempted,
    gcp_maintenance,
    azure,
]


def only(reading: Reading) -> Notice:
    (notice,) = reading.notices
    return notice


def unix_s(*moment: int) -> float:
    return datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]


def event(**changes: Any) -> dict[str, Any]:
    return {
        "EventId": "E1", "EventStatus": "Scheduled", "EventType": "Preempt", "ResourceType": "VirtualMachine",
        "Resources": ["vm_1"], "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT", "EventSource": "Platform",
    } | changes  # fmt: skip


def document(*events: object) -> str:
    return json.dumps({"DocumentIncarnation": 1, "Events": list(events)})


@pytest.mark.parametrize("action", ["terminate", "stop"])
def test_an_aws_interruption_says_when(action: str):
    """Its time is the deadline, and part of its identity: a later interruption is another event."""
    notice = only(aws_instance_action(f'{{"action": "{action}", "time": "2017-09-18T08:22:00Z"}}', NOW))
    deadline = unix_s(2017, 9, 18, 8, 22)
    assert notice == Notice(
        Provider.AWS, Kind.RECLAIM, f"{action}@2017-09-18T08:22:00Z", NOW, deadline, f"spot interruption ({action})"
    )


def test_hibernation_has_begun_when_it_is_seen():
    """There are no two minutes: the deadline is now, whatever time is given."""
    body = json.dumps({"action": "hibernate", "time": "2099-01-01T00:00:00Z"})
    assert only(aws_instance_action(body, NOW)).deadline_unix_s == NOW


@pytest.mark.parametrize("time", ["soon", None, 7, "", "2017-99-99T00:00:00Z", ["2017-09-18T08:22:00Z"]])
def test_an_unreadable_time_does_not_hide_a_reclaim(time: object):
    """The event is certain; its deadline is then the shortest notice there is."""
    for found in (
        aws_instance_action(json.dumps({"action": "terminate", "time": time}), NOW),
        azure(document(event(NotBefore=time or "?")), NOW),
    ):
        notice = only(found)
        assert (notice.kind, notice.deadline_unix_s) == (Kind.RECLAIM, NOW + UNKNOWN_LEAD_S)


def test_an_unknown_action_is_a_reclaim():
    """AWS answers 200 only where the machine goes, by whatever name."""
    assert only(aws_instance_action('{"action": "vanish"}', NOW)).kind is Kind.RECLAIM


def test_a_rebalance_recommendation_is_a_hint():
    """It has no deadline."""
    notice = only(aws_rebalance('{"noticeTime": "2020-10-27T08:22:00Z"}', NOW))
    assert (notice.kind, notice.deadline_unix_s, notice.ends_service) == (Kind.REBALANCE, None, False)


def test_a_gcp_preemption_leaves_30_s():
    """TRUE is the whole payload; the deadline is counted from when it was seen."""
    assert gcp_preempted("FALSE\n", NOW) == Reading()
    notice = only(gcp_preempted("TRUE", NOW))
    assert (notice.kind, notice.deadline_unix_s) == (Kind.RECLAIM, NOW + GCP_LEAD_S)
    assert notice.id != only(gcp_preempted("TRUE", NOW + 3600)).id


def test_gcp_maintenance_stops_machines_and_migrations_do_not():
    """Only a stop is told; a live migration is a remark in the log."""
    assert gcp_maintenance("NONE", NOW) == Reading()
    migration = gcp_maintenance("MIGRATE_ON_HOST_MAINTENANCE", NOW)
    assert (migration.notices, len(migration.remarks)) == ((), 1)
    stop = only(gcp_maintenance("TERMINATE_ON_HOST_MAINTENANCE", NOW))
    assert (stop.kind, stop.deadline_unix_s) == (Kind.MAINTENANCE, NOW + GCP_MAINTENANCE_LEAD_S)


@pytest.mark.parametrize(
    ("event_type", "kind"),
    [
        ("Preempt", Kind.RECLAIM),
        ("Terminate", Kind.RECLAIM),
        ("Reboot", Kind.MAINTENANCE),
        ("Redeploy", Kind.MAINTENANCE),
    ],
)
def test_an_azure_event_says_when(event_type: str, kind: Kind):
    """NotBefore is the deadline, EventId the identity."""
    notice = only(azure(document(event(EventType=event_type)), NOW))
    assert (notice.kind, notice.id, notice.deadline_unix_s) == (kind, "E1", unix_s(2016, 9, 19, 18, 29, 47))


def test_an_azure_event_that_has_started_is_due_now():
    """Its NotBefore is blank."""
    for started in (event(NotBefore="", EventStatus="Started"), event(NotBefore=None)):
        assert only(azure(document(started), NOW)).deadline_unix_s == NOW


def test_azure_lists_other_machines_events():
    """Only those whose Resources name this machine count, in whatever case."""
    found = azure(document(event(EventId="other", Resources=["vm_10"]), event(Resources=["VM_1"])), NOW)
    assert [notice.id for notice in found.notices] == ["E1"]
    assert found.remarks == ()


def test_an_azure_event_of_several_machines_is_not_hastened():
    """A word from one machine would start it for all."""
    both = only(azure(document(event(Resources=["vm_1", "vm_2"])), NOW))
    assert (both.may_hasten, only(azure(document(event()), NOW)).may_hasten) == (False, True)


def test_a_freeze_is_no_notice():
    """The machine pauses for seconds: nothing is told, one line is logged; the same for what is not understood."""
    odd = (event(EventType="Freeze"), event(EventType="Dance"), event(EventId=None), "x", 3)
    found = azure(document(*odd, event()), NOW)
    assert [notice.id for notice in found.notices] == ["E1"]
    assert len(found.remarks) == len(odd)


def test_start_requests_name_the_events():
    """The body that Azure takes."""
    assert json.loads(azure_start_requests(["a", "b"])) == {"StartRequests": [{"EventId": "a"}, {"EventId": "b"}]}


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("body", ["", "{", "[]", "null", "<html>404</html>", "{}", "[" * 100_000, '{"Events": {}}'])
def test_what_is_none_of_theirs_is_unreadable(parse: Callable[[str, float], Reading], body: str):
    """Captive portals, proxies and empty bodies: one complaint, of bounded length."""
    with pytest.raises(UnreadableError) as caught:
        parse(body, NOW)
    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = ["action", "time", "noticeTime", "Events"]
event_keys = ["EventId", "EventType", "Resources", "NotBefore", "EventStatus", "EventSource"]
types = st.sampled_from(["Preempt", "Freeze", "Reboot"]) | json_values
events = st.dictionaries(st.sampled_from(event_keys), json_values) | st.fixed_dictionaries(
    {"EventId": st.text(), "EventType": types, "Resources": st.just(["vm_1"])}, optional={"NotBefore": json_values}
)
objects = st.dictionaries(st.sampled_from(keys), json_values | st.lists(events, max_size=4)).map(json.dumps)


@given(body=st.text() | json_values.map(json.dumps) | objects)
def test_garbage_is_unreadable_or_read(body: str):
    """No parser raises anything else, and no notice is without an id or has a deadline that JSON cannot say."""
    for parse in PARSERS:
        try:
            found = parse(body, NOW)
        except UnreadableError:
            continue
        for notice in found.notices:
            assert 0 < len(notice.id) < 300
            json.dumps(notice.deadline_unix_s, allow_nan=False)
        assert all(len(remark) < 1000 for remark in found.remarks)


dates = st.text() | st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} -?\d{1,6} \d+:\d+:\d+ [-+A-Z0-9]{0,6}\Z")


@given(date=dates)
def test_dates_that_are_none(date: str):
    """Whatever stands in NotBefore or time, the notice comes."""
    assert len(azure(document(event(NotBefore=date)), NOW).notices) == 1
    assert len(aws_instance_action(json.dumps({"action": "stop", "time": date}), NOW).notices) == 1
