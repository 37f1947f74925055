"""How the grace period is divided."""

from hypothesis import given
from hypothesis import strategies as st

from consumer.drain import finish_seconds


def test_handlers_have_what_is_set_for_them_within_a_usual_grace_period() -> None:
    assert finish_seconds(2.0, 20.0) == 2.0


@given(finish=st.floats(0, 3600), grace=st.floats(0, 3600))
def test_handlers_never_have_all_of_the_grace_period(finish: float, grace: float) -> None:
    allowed = finish_seconds(finish, grace)
    assert 0 <= allowed <= finish
    assert allowed <= max(grace - 3.0, grace / 2) + 1e-9
