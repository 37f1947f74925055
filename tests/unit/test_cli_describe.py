"""What the command line says about budgets."""

from headrace.cli.describe import dead_letter_fields, task_fields
from headrace.v1 import dead_letter_pb2, task_pb2

BUDGETS = task_pb2.Budgets(failures=1, max_attempts=3, crashes=2, max_crashes=3, interruptions=7)
SHOWN = {"failures": "1 of 3", "crashes": "2 of 3", "interruptions": "7 of 100"}


def test_a_task_shows_what_is_used_of_each_budget() -> None:
    assert dict(task_fields(task_pb2.Task(budgets=BUDGETS))).items() >= SHOWN.items()


def test_a_dead_letter_shows_what_is_used_of_each_budget() -> None:
    assert dict(dead_letter_fields(dead_letter_pb2.DeadLetter(budgets=BUDGETS))).items() >= SHOWN.items()


def test_nothing_used_is_shown_as_well() -> None:
    fresh = dict(task_fields(task_pb2.Task(budgets=task_pb2.Budgets(max_attempts=3, max_crashes=3))))
    assert [fresh[name] for name in SHOWN] == ["0 of 3", "0 of 3", "0 of 100"]


def test_a_message_that_was_no_task_has_no_budgets() -> None:
    assert {dict(dead_letter_fields(dead_letter_pb2.DeadLetter()))[name] for name in SHOWN} == {""}
