"""The producer's pure parts: ids, the watch over leases, page tokens, payloads from Structs."""

import base64
import dataclasses
import itertools
import json
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from google.protobuf.struct_pb2 import Struct, Value

from headrace.v1 import dead_letter_pb2
from headrace_core.errors import PageTokenInvalid
from headrace_core.tasks.model import Lease, UnitId
from headrace_core.tasks.takeover import Observed
from producer import page_tokens
from producer.ids import TaskIds
from producer.lease_watch import LeaseWatch
from producer.payload import struct_text


def test_ids_are_uuid7_and_only_grow_even_when_the_clock_steps_back() -> None:
    clock = iter([1_700_000_000_000_000_000] * 500 + [1_600_000_000_000_000_000] * 500 + [1_700_000_000_001_000_000])
    ids = TaskIds(lambda: next(clock))
    made = [ids.next() for _ in range(1001)]
    assert all(one < other and str(one) < str(other) for one, other in itertools.pairwise(made))
    assert {(made_id.version, made_id.variant) for made_id in made} == {(7, UUID(int=0x8 << 60).variant)}
    assert made[0].int >> 80 == 1_700_000_000_000
    assert made[-1].int >> 80 == 1_700_000_000_001


def test_a_millisecond_that_is_used_up_goes_on_in_the_next() -> None:
    ids = TaskIds(lambda: 5_000_000)
    first = ids.next()
    ids._tail = (1 << 74) - 1
    assert ids.next().int >> 80 == (first.int >> 80) + 1


def observed(renewal: int = 0, *, unit: UnitId | None = None, epoch: int = 1, holder: UUID | None = None) -> Observed:
    return Observed(Lease(unit or UNIT, epoch, holder or HOLDER), "default", renewal, 0)


UNIT, HOLDER = UnitId(uuid4()), uuid4()


def lease_of(_queue: str) -> float:
    return 10.0


def test_a_lease_seen_unchanged_for_its_whole_length_is_lost() -> None:
    watch = LeaseWatch()
    rounds = [watch.see([observed()], float(second), lease_of) for second in range(12)]
    assert [bool(lost) for lost in rounds] == [False] * 10 + [True] * 2


def test_a_renewal_another_epoch_and_another_holder_begin_anew() -> None:
    for changed in (observed(1), observed(epoch=2), observed(holder=uuid4())):
        watch = LeaseWatch()
        for second in range(10):
            assert watch.see([observed()], float(second), lease_of) == []
        assert all(watch.see([changed], float(second), lease_of) == [] for second in range(10, 20))
        assert watch.see([changed], 20.0, lease_of) == [changed]


def test_a_lease_whose_holder_was_seen_to_die_is_lost_at_once() -> None:
    dead, alive = dataclasses.replace(observed(), dead=True), observed(unit=UnitId(uuid4()))
    assert LeaseWatch().see([dead, alive], 0.0, lease_of) == [dead]


def test_a_failed_round_excuses_everybody() -> None:
    watch = LeaseWatch()
    for second in range(10):
        watch.see([observed()], float(second), lease_of)
    watch.fail()
    assert all(watch.see([observed()], float(second), lease_of) == [] for second in range(10, 20))


def test_a_late_round_excuses_everybody() -> None:
    watch = LeaseWatch()
    for second in range(8):
        watch.see([observed()], float(second), lease_of)
    assert watch.see([observed()], 60.0, lease_of) == []
    assert all(watch.see([observed()], 60.0 + second, lease_of) == [] for second in range(1, 10))
    assert watch.see([observed()], 70.0, lease_of) == [observed()]


def test_a_page_token_leads_back_to_its_place_only_with_its_method_and_filter() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    wanted = dead_letter_pb2.DeadLetterFilter(queue="q")
    token = page_tokens.encode("List", wanted, moment, "id-1")
    assert page_tokens.decode(token, "List", wanted) == (moment, "id-1")
    assert page_tokens.decode("", "List", wanted) is None
    digest = json.loads(base64.urlsafe_b64decode(token))[0]

    def forged(*place: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()

    for method, filter_, sent in (
        ("Other", wanted, token),
        ("List", dead_letter_pb2.DeadLetterFilter(queue="r"), token),
        ("List", wanted, token[:-4]),
        ("List", wanted, "%%%"),
        ("List", wanted, forged(digest, "2026-01-02T03:04:05", "id-1")),
        ("List", wanted, forged(digest, "yesterday", "id-1")),
        ("List", wanted, forged(digest, moment.isoformat(), "\0")),
        ("List", wanted, forged(digest, 7, "x")),
        ("List", wanted, forged({"a": 1})),
    ):
        with pytest.raises(PageTokenInvalid):
            page_tokens.decode(sent, method, filter_)


def test_a_struct_becomes_text_in_one_order_with_ints_below_two_to_the_53() -> None:
    struct = Struct()
    struct.update({"z": 2.0**53, "a": 2.0**53 - 1, "m": -0.0, "h": 1.5})
    assert struct_text(struct) == b'{"a":9007199254740991,"h":1.5,"m":0,"z":9007199254740992.0}'
    struct = Struct(fields={"nothing": Value()})
    assert struct_text(struct) == b'{"nothing":null}'
