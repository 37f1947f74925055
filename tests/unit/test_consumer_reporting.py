"""How output is cut and gathered."""

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from consumer.reporting import _Pending, pieces_of
from headrace_core.tasks.model import Lease, Report, UnitId


@given(st.text(max_size=300), st.integers(4, 50))
def test_pieces_join_to_the_text_and_none_cuts_a_character(text: str, size: int) -> None:
    encoded = text.encode("utf-8", "replace")
    pieces = pieces_of(encoded, size)
    assert b"".join(pieces) == encoded
    for piece in pieces:
        piece.decode()
        assert 0 < len(piece) <= size


@given(st.lists(st.text(min_size=1, max_size=20), max_size=20), st.integers(0, 30))
def test_a_report_that_failed_is_offered_again_with_the_same_offset(texts: list[str], failures: int) -> None:
    pending = _Pending(Lease(UnitId(uuid4()), 1, uuid4()))
    for text in texts:
        piece = text.encode("utf-8", "replace")
        pending.output.append(piece)
        pending.waiting_bytes += len(piece)
    written = b""
    while report := pending.next_report():
        assert report.byte_offset == len(written)
        if failures:
            failures -= 1
            pending.put_back(report)
        else:
            written += report.text.encode()
    assert written == "".join(texts).encode("utf-8", "replace")
    assert pending.waiting_bytes == 0


def test_one_write_a_tick_and_progress_takes_turns_with_output() -> None:
    pending = _Pending(Lease(UnitId(uuid4()), 1, uuid4()))
    pending.progress = (0.5, "half")
    pending.output.append(b"text")
    first = pending.take(10.0)
    assert [item.type for item in first] == ["progress"]
    pending.progress = (0.6, "more")
    assert pending.take(10.05) == []
    second: list[Report] = pending.take(10.11)
    assert [item.type for item in second] == ["output"]
