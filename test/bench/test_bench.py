"""``flashvla-ros bench`` on tiny models: what it counts, reports and refuses. No test looks at how long things take."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from checkpoints import random_model, tiny_config, write_checkpoint

from benchmarks.speed import page
from flashvla_ros import __main__ as cli
from flashvla_ros.bench import measure, models
from flashvla_ros.bench.baselines import PlainPolicy
from flashvla_ros.bench.configurations import DENSE, EAGER, PLAIN, PLAIN_PASS, draft_name, paper_name, select, table
from flashvla_ros.bench.rounds import Series, Speedup, time_in_turn
from flashvla_ros.bench.run import mix_row, mixes
from flashvla_ros.bench.trace import DEFAULT_TRACE, TraceStep, load_observations, read_trace
from flashvla_ros.core.errors import CheckpointError, FlashVLAError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import ModelSettings, PruningSettings, Settings, find
from flashvla_ros.core.types import Inference
from flashvla_ros.gate.decision import decide
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.random_checkpoint import config_of_size, write_random_checkpoint

NONE, ICS = PruningSettings(method="none"), PruningSettings(keep_ratio=0.5)
FRAMES = load_observations("open the drawer")


# The baseline


def test_plain_generate_gives_our_tokens(policy):
    plain = PlainPolicy(policy)
    for seen in FRAMES[:3]:
        np.testing.assert_array_equal(plain.infer(Request(seen, ICS)).tokens, policy.infer(Request(seen, NONE)).tokens)
        assert plain.check(seen, policy.infer(Request(seen, NONE)).tokens, "dense")


def test_other_tokens_than_generates_end_the_run(policy):
    tokens = policy.infer(Request(FRAMES[0], NONE)).tokens.copy()
    tokens[2] -= 40
    with pytest.raises(FlashVLAError, match="dense decodes .* where transformers' generate gives .* at token 2"):
        PlainPolicy(policy).check(FRAMES[0], tokens, "dense")


def test_plain_generate_goes_on_past_the_end_token(tmp_path):
    model = random_model(tiny_config())
    policy = OpenVLAPolicy.load(ModelSettings(checkpoint=str(write_checkpoint(tmp_path / "c")), threads=1))
    policy.model = model
    ours = policy.infer(Request(FRAMES[0], NONE)).tokens
    plain = PlainPolicy(policy)
    plain.decoder.config.eos_token_id = plain.decoder.generation_config.eos_token_id = int(ours[0])
    np.testing.assert_array_equal(plain.infer(Request(FRAMES[0], NONE)).tokens, ours)


# Rounds and ratios


def test_every_runner_sees_every_frame_once_a_round_and_none_is_always_first():
    calls: list[tuple[str, float]] = []

    def runner(name: str):
        def run(seen):
            calls.append((name, seen.stamp_s))
            return Inference(np.zeros((1, 4)), np.zeros((1, 4)), np.zeros(4, np.int64), None, 16)

        return run

    rounds: list[int] = []
    series = time_in_turn({n: runner(n) for n in "abc"}, FRAMES[:2], 4, lambda: None, rounds.append, cpu=True)
    assert rounds == [1, 2, 3, 4]
    assert all(len(one.seconds) == len(one.inferences) == len(one.cpu_seconds) == 4 for one in series.values())
    timed = [calls[start : start + 3] for start in range(3, 15, 3)]  # behind the warm-up
    assert [{stamp for _, stamp in one} for one in timed] == [{0.1}, {0.2}, {0.1}, {0.2}]
    assert [one[0][0] for one in timed] == ["a", "b", "c", "a"]


def test_no_round_begins_after_the_limit():
    run = Inference(np.zeros((1, 4)), np.zeros((1, 4)), np.zeros(4, np.int64), None, 16)
    series = time_in_turn({"a": lambda seen: run}, FRAMES, 100, lambda: None, lambda _: None, cpu=False, limit_s=0.0)
    assert len(series["a"].seconds) == 2 and not series["a"].cpu_seconds


def test_speedup_is_paired_by_round():
    baseline = np.array([1.0, 10.0, 2.0, 4.0])
    speedup = Speedup.of(baseline, baseline / 2)
    assert (speedup.median, speedup.low, speedup.high) == (2.0, 2.0, 2.0)
    wide = Speedup.of(baseline, np.ones(4))
    assert wide.low < wide.median == 3.0 < wide.high


def test_mix_takes_each_step_at_the_time_of_its_kind():
    trace = read_trace(DEFAULT_TRACE)[:4]
    fresh = [np.array([1.0, 3.0])] * sum(step.fresh for step in trace)
    row = mix_row("mix", trace, fresh, 0.5, np.array([2.0, 6.0]))
    share = len(fresh) / len(trace)
    assert row["mean_ms"] == pytest.approx(1e3 * (2.0 * share + 0.5))
    assert row["reuse_rate"] == 1 - share


def test_mix_with_a_draft_pays_for_the_passes_that_the_draft_leaves():
    def timed(seconds: float) -> Series:
        run = Inference(np.zeros((1, 7)), np.zeros((1, 7)), np.zeros(7, np.int64), None, 256)
        return Series([seconds] * 2, [], [run] * 2)

    name = paper_name(256)
    series = {PLAIN: timed(10.0), name: timed(8.0), draft_name(name, 1): timed(2.0), draft_name(name, 0): timed(8.0)}
    # no draft; none, half and all of four tokens, carried over to seven: 6, 3 and no passes after the prompt
    agreeing = [None, 0, 2, 4]
    trace = [TraceStep("mine", True, share, 4) for share in agreeing]
    greedy, drafted = mixes(series, trace, 0.0)
    assert (greedy["name"], drafted["name"]) == (f"mine gate, {name}", f"mine gate, {name}, draft")
    assert greedy["mean_ms"] == 8000.0
    assert drafted["mean_ms"] == pytest.approx(1e3 * (8.0 + 8.0 + 5.0 + 2.0) / 4)


def test_the_gate_is_timed_on_decisions_that_compare_real_frames(policy, monkeypatch):
    decisions = []

    def remember(*seen):
        decisions.append(decide(*seen))
        return decisions[-1]

    monkeypatch.setattr(measure, "decide", remember)
    seconds = measure.gate_seconds(FRAMES, policy.infer(Request(FRAMES[0], ICS)), Settings(), repeats=20)
    assert len(seconds) == len(decisions) == 20 and (seconds > 0).all()
    # One inference answers every frame, so the actions always agree, and only the picture can forbid reuse.
    assert {(decision.angle_deg, decision.overlap) for decision in decisions} == {(0.0, 1.0)}
    assert {decision.reason for decision in decisions} <= {Reason.REUSE, Reason.SCENE_CHANGED}
    assert len({decision.scene_level for decision in decisions}) > 1


# Models


def test_random_weights_in_memory_run_without_a_folder():
    policy = models.random_policy(config_of_size("tiny"), ModelSettings(threads=1))
    assert policy.action_size == 7
    plain = PlainPolicy(policy)
    assert plain.check(FRAMES[0], policy.infer(Request(FRAMES[0], NONE)).tokens, "dense")
    sizes = models.describe(policy)["parameters"]
    assert sum(sizes.values()) + 32 == sum(p.numel() for p in policy.model.parameters())  # and the last norm


def test_weights_larger_than_the_machine_are_refused(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1 << 10)
    with pytest.raises(CheckpointError, match=r"the weights need .* GB, this machine has .*--dtype bfloat16"):
        models.random_policy(config_of_size("tiny"), ModelSettings())


def test_mid_is_a_small_openvla_of_256_visual_tokens():
    config, large = config_of_size("mid"), config_of_size("7b")
    assert config.visual_tokens == large.visual_tokens == 256 and config.fused


# The table


def test_every_method_and_budget_is_in_the_table():
    names = [row.name for row in table(256)]
    assert names[0] == DENSE and len(set(names)) == len(names)
    assert {f"ics k={k} layer {layer}" for k in (160, 128, 64) for layer in (0, 2)} < set(names)
    methods = {Settings().with_values(row.values).pruning.method for row in table(256)}
    assert methods == set(find("pruning.method").choices)


def test_a_chunk_in_one_pass_is_held_to_the_eager_engine_and_has_no_drafts(tmp_path, monkeypatch):
    monkeypatch.setattr("flashvla_ros.bench.measure._STREAM_BYTES", {"cpu": 1 << 20})
    folder, out = tmp_path / "oft", tmp_path / "bench.json"
    write_random_checkpoint(folder, config_of_size("tiny"), architecture="openvla_oft")
    chosen = ["--set", "model.unnorm_key=random_7d", "--only", "dense*", "--only", "ics k=* layer 2"]
    assert cli.main(["bench", "--model", str(folder), *chosen, "--rounds", "2", "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["meta"]["sizes"]["visual_tokens"] == 32
    names = [row["name"] for row in written["rows"] if "gate" not in row["name"]]
    assert names == [PLAIN_PASS, DENSE, *(f"ics k={kept} layer 2" for kept in (20, 16, 8))]
    dense, fewest = written["rows"][1], written["rows"][4]
    assert fewest["flops"] < dense["flops"]


def test_only_selects_by_pattern():
    chosen = [row.name for row in select(table(256), ["dense", "ics k=64*"])]
    assert chosen == [DENSE, "ics k=64 layer 0", "ics k=64 layer 2"]
    with pytest.raises(FlashVLAError, match=r"--only 'nope' matches none of: dense; "):
        select(table(256), ["nope"])


# The command


def test_rows_have_the_fixed_keys_and_what_a_page_needs(results):
    rows = {row["name"]: row for row in results["rows"]}
    assert {PLAIN, DENSE, "ics k=10 layer 2"} < rows.keys()
    for row in rows.values():
        assert row["p95_ms"] >= row["p50_ms"] > 0 and row["speedup"] > 0
        assert row["speedup_95"][0] <= row["speedup"] <= row["speedup_95"][1]
    assert rows[PLAIN]["speedup"] == 1.0
    stages = rows["ics k=10 layer 2"]["stages"]
    assert list(stages) == ["preprocess", "vision", "prefill", "scoring", "decode"]
    assert all(stages[name]["least_ms"] > 0 for name in ("vision", "prefill", "decode"))
    assert {"guarded gate, dense", "paper gate, ics k=10 layer 2, draft"} <= rows.keys()
    assert [rows[draft_name(DENSE, share)]["draft_accepted"] for share in (1, 0)] == [4, 0]
    assert rows["temporal k=10 layer 2"]["kept"] == 10
    assert rows[EAGER]["stages"].keys() == rows[DENSE]["stages"].keys()


def test_meta_names_device_versions_and_roofline(results):
    meta = results["meta"]
    assert meta["device"] and meta["versions"]["torch"] == torch.__version__
    assert min(meta["roofline"].values()) > 0
    assert meta["tokens_equal_plain"] == "3 of 3 rounds"
    assert meta["gate"]["p50_ms"] > 0
    assert meta["note"] == "a shared machine" and meta["memory"]["peak_bytes"] > 0
    assert meta["memory"]["steps"] == sum(" gate, " not in row["name"] for row in results["rows"])  # of the last round


def test_results_are_read_back_as_tables_and_drawn(results, tmp_path, capsys):
    source, picture = tmp_path / "b.json", tmp_path / "b.png"
    source.write_text(json.dumps(results))
    assert cli.main(["bench", "--read", str(source), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "\nics k=10 layer 2  " in printed and "a shared machine" in printed
    assert "| ics k=10 layer 2 |" in page(results)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nowhere"], "--model is a checkpoint folder or one of demo, tiny, mid, 7b, got 'nowhere'"),
        (["--dtype", "int8"], "model.dtype must be one of"),
        (["--set", "model.checkpoint=x"], "give the folder to --model"),
        (["--only", "nope"], "--only 'nope' matches none of"),
        (["--trace", "/nowhere.csv"], "cannot read /nowhere.csv: No such file"),
        (["--read", "/nowhere.json"], "cannot read /nowhere.json: No such file"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_2(arguments, message, folder, capsys):
    assert cli.main(["bench", "--model", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("flashvla-ros: ") and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--rounds", "x"], ["--threads", "-1"]])
def test_counts_must_be_positive(arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["bench", *arguments])
    assert exit_info.value.code == 2


def test_a_file_that_is_no_result_is_refused(tmp_path, capsys):
    of_eval = '{"meta": {}, "rows": [{"mode": "dense", "task": "all"}]}'
    for content, message in (("{", "is not JSON"), ("[]", "holds no results"), (of_eval, "holds no times")):
        (tmp_path / "r.json").write_text(content)
        assert cli.main(["bench", "--read", str(tmp_path / "r.json")]) == 2
        assert message in capsys.readouterr().err
