"""The benchmarks' statistics and table: pure, so that a wrong figure is never a wrong sum."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import plots, report
from bench.__main__ import Run, chosen, parsed
from bench.measure import Figure, Samples, Scope, WrongResult, at_least, at_most, required

FIGURES = (
    Figure("bare", "tasks/s"),
    Figure("product", "tasks/s", per="bare", target=at_least(0.5)),
    Figure("p99", "ms", target=at_most(15)),
    Figure("never", "ms", target=at_most(15)),
)
ROUNDS: list[Samples] = [
    {"bare": 1000.0, "product": 400.0, "p99": 15.0},
    {"bare": 500.0, "product": 450.0, "p99": 20.0},
    {"bare": 2000.0, "product": 1000.0, "p99": 9.0},
]


def test_the_spread_is_the_median_and_the_range() -> None:
    assert report.spread([3.0, 1.0, 10.0]) == report.Spread(3.0, 1.0, 10.0)
    assert report.spread([1.0, 2.0]).median == 1.5


def test_a_ratio_is_taken_within_each_round() -> None:
    row = report.rows("sort", FIGURES, ROUNDS)[1]
    # Of medians it would be 450 / 1000.
    assert row.ratio == report.Spread(0.5, 0.4, 0.9)
    assert row.value == report.Spread(450.0, 400.0, 1000.0)


def test_a_target_judges_the_ratio_where_there_is_one_and_its_bound_is_good_enough() -> None:
    bare, product, p99 = report.rows("sort", FIGURES, ROUNDS)
    assert (bare.reached, product.reached, p99.reached) == (None, True, True)
    assert not at_least(0.5).reached(0.49)
    assert not at_most(15).reached(15.1)


def test_a_sample_that_some_rounds_lack_is_judged_by_the_others_and_one_that_all_lack_has_no_row() -> None:
    rows = report.rows("sort", FIGURES, [{"bare": 10.0}, {"product": 3.0}, {"bare": 10.0, "product": 6.0}])
    assert [row.figure.sample for row in rows] == ["bare", "product"]
    assert rows[1].ratio == report.Spread(0.6, 0.6, 0.6)


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0), (0.0, 1.0), (0.001, 1.0)]
)
def test_a_percentile_is_a_value_that_was_seen(share: float, wanted: float) -> None:
    assert report.percentile([float(n) for n in range(100, 0, -1)], share) == wanted


def test_a_percentile_of_one_value_is_that_value_and_of_none_an_error() -> None:
    assert report.percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        report.percentile([], 0.5)


def test_the_table_shows_ratio_reference_and_target_in_aligned_columns() -> None:
    lines = report.table(report.rows("sort", FIGURES, ROUNDS)).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["sort.bare", "1,000", "500-2,000", "tasks/s"],
        ["sort.product", "450", "400-1,000", "tasks/s", "0.5", "0.4-0.9", "bare", ">=", "0.5", "yes"],
        ["sort.p99", "15", "9-20", "ms", "<=", "15", "yes"],
    ]
    assert len({line.index("tasks/s") for line in lines[1:3]}) == 1


def test_details_name_every_sample_and_medians_of_a_prefix_drop_it() -> None:
    assert "sort.p99" in report.details({"sort": ROUNDS})
    assert report.median_of([{"cpu_a": 1.0, "cpu_b": 2.0}, {"cpu_a": 3.0}, {"x": 9.0}], "cpu_") == {"a": 2.0, "b": 2.0}


def test_what_other_programs_took_is_said() -> None:
    said = report.others({"a": [0.5, 1.5], "b": [0.004]})
    assert said == "cores that other programs used meanwhile: a 1.00, b 0.00"
    assert report.others({"a": []}).endswith(": nothing was measured")


def test_the_file_has_what_the_table_has() -> None:
    document = report.as_json(report.rows("sort", FIGURES, ROUNDS)[1])
    assert document["name"] == "sort.product"
    assert document["ratio"] == {"median": 0.5, "least": 0.4, "greatest": 0.9}
    assert document["reached"] is True


def test_pictures_are_drawn_of_what_was_measured_only(tmp_path: Path) -> None:
    rows = report.rows("sort", FIGURES, ROUNDS)
    assert [file.name for file in plots.draw(rows, {"sort": ROUNDS}, tmp_path)] == ["targets.png", "ratios.png"]
    cpu: Samples = {f"cpu_{run}_postgres": 50.0 for run in ("bare_loop", "one_consumer", "two_consumers")}
    assert [file.name for file in plots.draw([], {"end_to_end": [cpu]}, tmp_path)] == ["cpu.png"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("targets.png", "ratios.png", "cpu.png"))


def test_only_names_measures_and_a_quick_run_leaves_out_what_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(chosen(parsed(["--only", "idle,unary"]))) == ["unary", "idle"]
    assert list(chosen(parsed(["--quick", "--only", "backlog"]))) == ["backlog"]
    assert "backlog" not in chosen(parsed(["--quick"]))
    assert "backlog" in chosen(parsed([]))
    with pytest.raises(SystemExit):
        parsed(["--only", "speed"])
    assert "there is no measure speed" in capsys.readouterr().err


class Scripted:
    """A measure whose rounds are given."""

    WHAT = "scripted"
    ON_DEMAND = False
    FIGURES: Sequence[Figure] = (Figure("n", "n"),)

    def __init__(self, *rounds: float | Exception) -> None:
        self._rounds = list(rounds)

    async def once(self, scope: Scope) -> Samples:
        found = self._rounds.pop(0)
        if isinstance(found, Exception):
            raise found
        return {"n": found}


def test_a_figure_that_must_be_zero_is_drawn(tmp_path: Path) -> None:
    rows = report.rows("reads", [Figure("failed", "calls", target=at_most(0))], [{"failed": 0.0}, {"failed": 3.0}])
    assert rows[0].reached is False
    assert plots.draw(rows, {}, tmp_path) == [tmp_path / "targets.png"]


async def test_a_wrong_result_and_a_failure_are_told_and_the_other_measures_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = {"good": Scripted(1.0, 3.0), "wrong": Scripted(WrongResult("a task is missing"), 5.0)}
    run = Run(measures, rounds=2, quick=True)
    await run.rounds(Scope(tmp_path, quick=True))
    assert run.samples == {"good": [{"n": 1.0}, {"n": 3.0}], "wrong": [{"n": 5.0}]}
    assert run.wrong == ["wrong: a task is missing"]
    failing = Run({"bad": Scripted(OSError("no room"))}, rounds=1, quick=True)
    await failing.rounds(Scope(tmp_path, quick=True))
    assert failing.wrong == ["bad was not measured: OSError('no room')"]
    assert "no room" in capsys.readouterr().err


async def test_what_takes_minutes_runs_in_the_first_round_only_unless_it_is_alone(tmp_path: Path) -> None:
    scope = Scope(tmp_path, quick=False)
    lasting = Scripted(1.0, 2.0)
    lasting.ON_DEMAND = True
    run = Run({"short": Scripted(1.0, 2.0), "lasting": lasting}, rounds=2, quick=False)
    await run.rounds(scope)
    assert [len(samples) for samples in run.samples.values()] == [2, 1]
    alone = Scripted(1.0, 2.0)
    alone.ON_DEMAND = True
    only = Run({"alone": alone}, rounds=2, quick=False)
    await only.rounds(scope)
    assert len(only.samples["alone"]) == 2


def test_required_raises_what_is_wrong() -> None:
    required(True, "never said")
    with pytest.raises(WrongResult, match="three are missing"):
        required(False, "three are missing")
