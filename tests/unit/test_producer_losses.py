"""When a message counts as lost: by what the stream has passed, or after patience, and never from age alone."""

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from headrace_core.bus.task_stream import nanoseconds
from headrace_core.tasks.model import UnitId
from headrace_core.tasks.reconciliation import Doubtful
from producer.losses import PATIENCE_IN_LEASES, LossWatch

LEASE = 10.0
PATIENCE = PATIENCE_IN_LEASES * LEASE


def doubtful(sequence: int = 7, incarnation: int = 2, dispatch: int = 1) -> Doubtful:
    return Doubtful(UnitId(uuid4()), dispatch, incarnation, sequence, "default", "normal")


def lease_of(queue: str) -> float:
    return LEASE


def test_a_message_of_an_earlier_incarnation_is_lost() -> None:
    item = doubtful(incarnation=1)
    assert LossWatch().see([item], 2, {}, 0.0, lease_of) == [item]


def test_what_the_durable_has_passed_is_lost_and_what_it_has_only_delivered_is_not() -> None:
    passed, delivered = doubtful(sequence=7), doubtful(sequence=8)
    assert LossWatch().see([passed, delivered], 2, {("default", "normal"): 7}, 0.0, lease_of) == [passed]


def test_what_was_delivered_is_lost_after_three_leases_in_rounds_of_ours() -> None:
    watch, item = LossWatch(), doubtful()
    assert watch.see([item], 2, {}, 100.0, lease_of) == []
    assert watch.see([item], 2, {}, 100.0 + PATIENCE - 0.1, lease_of) == []
    assert watch.see([item], 2, {}, 100.0 + PATIENCE, lease_of) == [item]


def test_patience_begins_anew_with_a_new_dispatch_or_an_absence() -> None:
    watch, item = LossWatch(), doubtful()
    watch.see([item], 2, {}, 0.0, lease_of)
    again = Doubtful(item.unit_id, 2, 2, 20, "default", "normal")
    assert watch.see([again], 2, {}, PATIENCE, lease_of) == []
    watch.see([], 2, {}, PATIENCE + 1, lease_of)
    assert watch.see([again], 2, {}, 2 * PATIENCE, lease_of) == []


@given(st.datetimes().map(lambda time: time.replace(microsecond=0)), st.integers(0, 999_999_999))
def test_times_of_the_server_keep_their_order(time: object, fraction: int) -> None:
    written = f"{time:%Y-%m-%dT%H:%M:%S}".rjust(19, "0")
    exact = nanoseconds(f"{written}.{fraction:09d}Z")
    assert nanoseconds(f"{written}Z") <= exact < nanoseconds(f"{written}Z") + 1_000_000_000
    # The server leaves trailing zeros out.
    assert nanoseconds(f"{written}.{fraction:09d}".rstrip("0").rstrip(".") + "Z") == exact
