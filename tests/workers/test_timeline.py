"""The durations a request reports, from stamps under a clock that the test moves."""

import pytest

from decode_worker.timeline import Moment, RequestTimeline
from penstock.v1 import inference_pb2


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stamp_at(timeline: RequestTimeline, clock: Clock, moments: dict[Moment, float]) -> None:
    for moment, at in moments.items():
        clock.now = 100.0 + at
        timeline.stamp(moment)


def test_a_request_prefilled_here_reports_where_its_time_went(clock: Clock):
    timeline = RequestTimeline(router_s=0.5, clock=clock)
    stamp_at(
        timeline,
        clock,
        {
            Moment.SCHEDULED: 1,
            Moment.FIRST_SAMPLED: 3,
            Moment.READY: 3,
            Moment.FIRST_SENT: 3.25,
            Moment.LAST_SENT: 8,
        },
    )
    fields = timeline.fields()
    assert fields["queue_seconds"] == 1
    assert fields["prefill_seconds"] == 2
    assert fields["transfer_seconds"] == 0
    assert fields["transfer_visible_seconds"] == 0
    assert fields["first_token_seconds"] == 3.75
    assert fields["total_seconds"] == 8.5


def test_a_remote_prefill_reports_what_the_prefill_worker_measured(clock: Clock):
    timeline = RequestTimeline(clock=clock)
    timeline.queue_s, timeline.prefill_s = 0.125, 0.75
    stamp_at(
        timeline,
        clock,
        {
            Moment.GRANTED: 1,
            Moment.FIRST_SAMPLED: 2,
            Moment.FIRST_SENT: 2,
            Moment.VERIFIED: 2.5,
            Moment.READY: 2.75,
        },
    )
    fields = timeline.fields()
    assert (fields["queue_seconds"], fields["prefill_seconds"]) == (0.125, 0.75)
    assert fields["transfer_seconds"] == 1.5
    assert fields["transfer_visible_seconds"] == 0.75
    assert fields["total_seconds"] == 0  # it has not ended


def test_a_moment_is_stamped_once(clock: Clock):
    timeline = RequestTimeline(clock=clock)
    assert not timeline.has(Moment.FIRST_SENT)
    stamp_at(timeline, clock, {Moment.FIRST_SENT: 1})
    stamp_at(timeline, clock, {Moment.FIRST_SENT: 5})
    assert timeline.has(Moment.FIRST_SENT)
    assert timeline.fields()["first_token_seconds"] == 1


def test_the_fields_are_those_of_the_wire(clock: Clock):
    timeline = RequestTimeline(clock=clock)
    timeline.num_preemptions, timeline.transferred_bytes = 2, 1 << 40
    message = inference_pb2.Timeline(**timeline.fields())
    assert timeline.fields().keys() == set(inference_pb2.Timeline.DESCRIPTOR.fields_by_name)
    assert (message.preemptions, message.transferred_bytes) == (2, 1 << 40)
