"""Traces of decisions: the one that ships, what is written and read back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import trace as record_trace
from flashvla_ros.bench.trace import DEFAULT_TRACE, TraceStep, load_observations, read_trace, relative
from flashvla_ros.core.errors import FlashVLAError

HEAD = "mode,task,seed,step,decision,reason,agreeing,tokens\n"


def test_the_trace_that_ships_has_both_modes_and_both_decisions():
    steps = read_trace(DEFAULT_TRACE)
    assert {step.mode for step in steps} == {"guarded", "paper"}
    for mode in ("guarded", "paper"):
        reused = [not step.fresh for step in steps if step.mode == mode]
        assert 0.2 < sum(reused) / len(reused) < 0.6
    assert any(step.agreeing for step in steps)
    assert all(step.agreeing is None for step in steps if not step.fresh)


def test_a_trace_is_read_step_by_step(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text(
        HEAD + "guarded,drawer-open,3,0,infer,start,,4\nguarded,drawer-open,3,1,infer,too_few_fresh,2,4\n"
        "guarded,drawer-open,3,2,reuse,reuse,,4\n"
    )
    assert read_trace(path) == [
        TraceStep("guarded", True, None, 4),
        TraceStep("guarded", True, 2, 4),
        TraceStep("guarded", False, None, 4),
    ]


def test_a_trace_is_recorded_with_the_demo_policy(tmp_path: Path):
    record_trace.record(tmp_path, ["button-press"], [0])
    head, *rows = (tmp_path / "trace.csv").read_text().splitlines()
    assert head + "\n" == HEAD
    assert {tuple(row.split(",")[:2]) for row in rows} == {(mode, "button-press") for mode in record_trace.MODES}
    assert len(read_trace(tmp_path / "trace.csv")) == len(rows)
    assert len(load_observations("press the button", tmp_path)) == 8


def test_columns_that_only_explain_may_be_missing(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text("mode,decision,agreeing,tokens\nmine,infer,,7\nmine,reuse,,7\n")
    assert [step.fresh for step in read_trace(path)] == [True, False]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "it has no column mode, decision, agreeing, tokens; record one with python -m"),
        ("mode,agreeing\nx,1\n", "it has no column decision, tokens;"),
        (HEAD, "has no step with decision infer"),
        (HEAD + "g,t,0,0,reuse,reuse,,4\n", "has no step with decision infer"),
        (HEAD + "g,t,0,0,perhaps,x,,4\n", "line 2: decision must be infer or reuse, got 'perhaps'"),
        (
            HEAD + "g,t,0,0,infer,x,,4\ng,t,0,1,infer,x,-1,4\n",
            "line 3: agreeing must be a whole number or empty, got '-1'",
        ),
        (HEAD + "g,t,0,0,infer,x,5,4\n", "line 2: 5 agreeing tokens of 4 cannot be"),
        (HEAD + "g,t,0,0,infer,x,0,\n", "line 2: 0 agreeing tokens of 0 cannot be"),
        (HEAD + "g,t,0\n", "line 2: decision must be infer or reuse, got None"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_line(content: str, message: str, tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(FlashVLAError) as error_info:
        read_trace(path)
    assert message in str(error_info.value) and str(path) in str(error_info.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(FlashVLAError, match="cannot read"):
        read_trace(path)


def test_results_name_files_without_the_machines_own_folders(tmp_path: Path):
    assert relative(DEFAULT_TRACE) == "flashvla_ros/bench/data/trace.csv"
    assert relative(tmp_path / "x.csv") == "x.csv"
