"""The static engine against the plain one: the same tokens and kept sets, whatever its buffers held before."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_model, tiny_config, write_checkpoint
from test_policy import observation
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, Observation
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.attention import SdpaAttention
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.decoding import decode, prefill
from flashvla_ros.vla.engine.base import EagerEngine
from flashvla_ros.vla.engine.buffers import Upload
from flashvla_ros.vla.engine.graphs import DirectCalls, Run, SpreadCaptures
from flashvla_ros.vla.engine.lean import MOST_INPUTS, LeanDecoder, laid_out
from flashvla_ros.vla.engine.static import StaticEngine
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.query import Query

NONE = PruningSettings(method="none")
WORDS = ("go", "open the drawer", "pick up the red block, then put it down again", "close the drawer")
EVERY = [
    NONE,
    PruningSettings(keep_ratio=1.0),
    *(PruningSettings(method=method, keep_ratio=0.5, layer=layer) for method in METHODS for layer in (0, 1, 2, 3)),
    *(PruningSettings(method=method, keep_ratio=0.25, drop=False) for method in METHODS),
]


class CountingCalls(SpreadCaptures):
    """Captures as CUDA graphs are captured, and counts."""

    def __init__(self) -> None:
        super().__init__(self._capture_one)
        self.captured = 0

    def _capture_one(self, run: Run) -> Run:
        self.captured += 1
        return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def load(folder: Path, engine: str) -> OpenVLAPolicy:
    return OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cpu", engine=engine))


@pytest.fixture(scope="module")
def eager(folder) -> OpenVLAPolicy:
    policy = load(folder, "eager")
    assert isinstance(policy.engine, EagerEngine)
    return policy


@pytest.fixture(scope="module", params=[1, 16])
def static(request, folder) -> OpenVLAPolicy:
    """Prompts of their own length, and prompts padded to a multiple of 16 as on a GPU."""
    return with_engine(folder, CountingCalls(), request.param)


def with_engine(folder: Path, recorder: CountingCalls | DirectCalls, granularity: int) -> OpenVLAPolicy:
    policy = load(folder, "static")
    assert isinstance(policy.engine, StaticEngine)
    policy.engine = StaticEngine(policy.model, policy.action_size, SdpaAttention(), recorder, granularity)
    return policy


@torch.inference_mode()
def spoil(engine: StaticEngine) -> None:
    """Fill what no step may read with values that would show."""
    for runs in engine._buckets.values():
        buffers = runs.buffers
        for tensor in (buffers.keys, buffers.values, buffers.entering, buffers.hidden, buffers.attention):
            tensor.fill_(1e6)
        for tensor in (buffers.ids, buffers.tokens, buffers.kept, buffers.choices, buffers.certainty):
            tensor.fill_(3)


def same(one, other, tolerance: float = 1e-5) -> bool:
    kept = one.kept is other.kept is None or np.array_equal(one.kept, other.kept)
    sure = 0.0 < one.confidence <= 1.0 and one.confidence == pytest.approx(other.confidence, abs=tolerance)
    alike = np.array_equal(one.tokens, other.tokens) and np.array_equal(one.action, other.action)
    return kept and sure and alike


@pytest.mark.parametrize("pruning", EVERY, ids=lambda p: f"{p.method}-{p.keep_ratio}-{p.layer}-{p.drop}")
def test_every_setting_gives_the_tokens_of_the_plain_engine(eager, static, pruning):
    for seed, words in enumerate(WORDS):
        seen = observation(seed, words, stamp_s=float(seed))
        expected = eager.infer(Request(seen, pruning))
        spoil(static.engine)
        assert same(static.infer(Request(seen, pruning)), expected)


def test_settings_and_instructions_change_at_every_step(eager, static):
    """In any order, with drafts that are right, wrong or none, and the frame before for the temporal method."""
    rng = np.random.default_rng(0)
    before = None
    for step in range(60):
        pruning = EVERY[rng.integers(len(EVERY))]
        seen = observation(int(rng.integers(5)), WORDS[rng.integers(len(WORDS))], stamp_s=step / 10)
        expected = eager.infer(Request(seen, pruning, before))
        draft = None
        if rng.random() < 0.5:
            tokens = expected.tokens.copy()
            tokens[rng.integers(5) :] -= 1
            draft = Draft(tokens[: rng.integers(1, 5)])
        result = static.infer(Request(seen, pruning, before, draft))
        assert same(result, expected), (step, pruning)
        before = expected


def test_no_step_captures_more_than_one_run_and_none_is_captured_again(folder):
    recorder = CountingCalls()
    policy = with_engine(folder, recorder, 16)

    def captures(keep_ratio: float, draft: Draft | None = None) -> list[int]:
        """How many runs each of eight steps captures."""
        made = [recorder.captured]
        for seed in range(8):
            policy.infer(Request(observation(seed), PruningSettings(keep_ratio=keep_ratio), draft=draft))
            made.append(recorder.captured)
        assert policy.engine.warm
        return [after - before for before, after in itertools.pairwise(made)]

    # One token, which is decoded three times a step; vision, before and after the pruning layer, the choice between.
    assert captures(0.5) == [0, 1, 0, 1, 1, 1, 1, 0]
    (runs,) = policy.engine._buckets.values()
    places = [tensor.data_ptr() for tensor in vars(runs.buffers).values() if isinstance(tensor, torch.Tensor)]
    assert captures(0.5) == [0] * 8
    assert captures(0.5, Draft(np.array([1, 2, 3, 4]))) == [0, 0, 0, 1, 0, 0, 0, 0]  # more rows of the last layer
    assert captures(0.25) == [0, 1, 0, 1, 1, 0, 0, 0]  # the choice, and all from the pruning layer on
    assert places == [tensor.data_ptr() for tensor in vars(runs.buffers).values() if isinstance(tensor, torch.Tensor)]


def test_warming_up_leaves_nothing_to_capture(folder):
    recorder = CountingCalls()
    policy = with_engine(folder, recorder, 16)
    pruning = PruningSettings(keep_ratio=0.5)
    policy.warm_up(pruning, WORDS[1])
    made = recorder.captured
    first = policy.infer(Request(observation(0, WORDS[1]), pruning))
    policy.infer(Request(observation(1, WORDS[1]), pruning, draft=Draft(first.tokens)))
    assert policy.engine.warm and recorder.captured == made


def test_old_buckets_and_runs_go(folder, eager):
    recorder = CountingCalls()
    policy = with_engine(folder, recorder, 1)
    for length in range(1, 9):
        seen = observation(1, " ".join(["go"] * length))
        assert same(policy.infer(Request(seen, NONE)), eager.infer(Request(seen, NONE)))
    assert len(policy.engine._buckets) == 4
    for k in range(1, 16):
        for layer in (1, 2):
            pruning = PruningSettings(keep_ratio=k / 16, layer=layer)
            assert same(policy.infer(Request(observation(k), pruning)), eager.infer(Request(observation(k), pruning)))
    assert max(len(runs._runs) for runs in policy.engine._buckets.values()) <= 32


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 1}, {"attention_bias": True, "mlp_bias": True}])
def test_other_decoders(changes):
    """Grouped key heads, and biases, which a checkpoint of another Llama may have."""
    config = tiny_config()
    config.text_config.update(changes)
    model = random_model(config)
    eager = EagerEngine(model, 4)
    pixels = torch.randn(1, 6, 56, 56, generator=torch.Generator().manual_seed(0))
    query = Query([1, *range(300, 311)], PruningSettings(keep_ratio=0.5))
    with torch.inference_mode():
        visual = model.visual_tokens(pixels)
        expected = eager.decode(eager.prefill(visual, query), ()).tokens
        static = StaticEngine(model, 4, SdpaAttention(), DirectCalls(), 16)
        assert torch.equal(static.decode(static.prefill(static.visual_tokens(pixels), query), ()).tokens, expected)


def held_bytes(model) -> int:
    storages = [parameter.untyped_storage() for parameter in model.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_shared_weights_leave_the_plain_model_as_it_was():
    model, query = random_model(tiny_config()), Query([1, *range(300, 311)], NONE)
    before, held = {name: tensor.clone() for name, tensor in model.state_dict().items()}, held_bytes(model)
    with torch.inference_mode():
        visual = model.visual_tokens(torch.randn(1, 6, 56, 56, generator=torch.Generator().manual_seed(0)))
        expected = decode(model, prefill(model, visual, query, 4), 4).tokens
        LeanDecoder(model)
        assert torch.equal(decode(model, prefill(model, visual, query, 4), 4).tokens, expected)
    assert held_bytes(model) == held
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="other libraries read rows as fast")
def test_wide_weights_are_laid_out_by_columns_and_their_product_with_many_rows_is_the_same():
    model = random_model(tiny_config())
    before = {name: tensor.clone() for name, tensor in model.language_model.state_dict().items()}
    decoder = LeanDecoder(model)
    qkv, gate_up = decoder.layers[0]._qkv[0], decoder.layers[0]._gate_up[0]
    head, table = model.language_model.lm_head.weight, model.language_model.model.embed_tokens.weight
    assert [weight.is_contiguous() for weight in (qkv, gate_up, head, table)] == [False, False, False, True]
    rows = torch.randn(40, head.shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        torch.nn.functional.linear(rows, head), torch.nn.functional.linear(rows, before["lm_head.weight"])
    )
    for weight in (qkv.bfloat16(), torch.zeros(8, 8), torch.zeros(2 * MOST_INPUTS + 2, MOST_INPUTS + 1)):
        assert laid_out(weight) is weight


def test_a_table_of_embeddings_that_is_the_head_too_keeps_its_rows():
    model = random_model(tiny_config())
    model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    LeanDecoder(model)
    assert model.language_model.lm_head.weight.is_contiguous()


def test_timings_name_every_stage(static):
    timings = static.infer(Request(observation(), PruningSettings(keep_ratio=0.5))).timings_s
    assert list(timings) == ["preprocess", "vision", "prefill", "scoring", "decode"]
    assert min(timings.values()) > 0


def test_an_upload_leaves_what_it_does_not_name():
    upload = Upload(4, torch.device("cpu"))
    upload([1, 2, 3, 4])
    upload([9])
    assert upload.values.tolist() == [9, 2, 3, 4]


class NothingForTheHost(TorchDispatchMode):
    """Fails where an operation hands a value to the host, has a shape made of one, or reads the host's memory."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, torch.Tensor)]
        by_number = operation is torch.ops.aten.index.Tensor and not any(one.dtype == torch.bool for one in tensors)
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags)
        assert (by_number or not tags) and "linalg_eigh" not in str(operation), operation
        assert {one.device.type for one in tensors} <= {"meta"}, operation
        return result


class WatchedCalls:
    """Runs what it records once more under a watch, without a device, as the capture of a CUDA graph would."""

    warm = True

    def __init__(self) -> None:
        self.recorded: list[str] = []

    def begin(self) -> None:
        pass

    def record(self, run: Run) -> Run:
        run()  # sends to the device what is sent once
        with NothingForTheHost():
            run()
        self.recorded.append(getattr(run, "func", run).__name__)
        return run


RECORDED = [name for name, method in METHODS.items() if method.recordable]


@pytest.mark.parametrize("method", [*RECORDED, "none"])
@pytest.mark.parametrize("layer", [0, 2])
def test_what_a_cuda_graph_records_never_asks_the_host(method, layer):
    """On the meta device every function of the engine takes the path of CUDA, and there is no value to look at."""
    recorder = WatchedCalls()
    engine = StaticEngine(random_model(tiny_config()).to("meta"), 4, SdpaAttention(), recorder, 16)
    query = Query([1, *range(300, 311)], PruningSettings(method=method, keep_ratio=0.5, layer=layer), (5, 6, 7, 8))
    with torch.inference_mode():
        visual = engine.visual_tokens(torch.empty(1, 6, 56, 56, device="meta"))
        engine.decode(engine.prefill(visual, query), (5, 6))
    choice = [] if method == "none" else ["choose"]
    assert recorder.recorded == ["see", "before", *choice, "after", "step"]


def test_only_what_needs_the_host_is_left_out():
    """One draws by the observation's stamp; the other compares with the frame before, and may find none."""
    assert {*METHODS} - {*RECORDED} == {"random", "temporal"}


def test_the_watch_sees_what_would_stall_a_step():
    scores = torch.empty(8, device="meta")
    for stall in (lambda: scores.nonzero(), lambda: torch.linalg.eigh(torch.outer(scores, scores)), scores.cpu):
        with NothingForTheHost(), pytest.raises((AssertionError, NotImplementedError)):
            stall()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_the_compiled_engine_gives_the_tokens_of_the_plain_one(eager, folder):
    policy = load(folder, "compiled")
    for pruning in (NONE, PruningSettings(method="ics", keep_ratio=0.5)):
        for seed, words in enumerate(WORDS[:2]):
            seen = observation(seed, words)
            expected = eager.infer(Request(seen, pruning))
            assert same(policy.infer(Request(seen, pruning)), expected)
            assert same(policy.infer(Request(seen, pruning, draft=Draft(expected.tokens))), expected)


def test_a_missing_compiler_is_said_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        SettingsError, match=r"compiled needs the C\+\+ compiler no-such-compiler: install it or set static"
    ):
        Backend.resolve(ModelSettings(device="cpu", engine="compiled"))


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_graphs_give_the_tokens_of_direct_calls(folder, dtype):
    settings = ModelSettings(checkpoint=str(folder), device="cuda", dtype=dtype, attention="sdpa", engine="static")
    graphs, direct = OpenVLAPolicy.load(settings), OpenVLAPolicy.load(settings)
    assert isinstance(graphs.engine._recorder, SpreadCaptures)
    direct.engine = StaticEngine(direct.model, 4, SdpaAttention(), DirectCalls(), 16)
    for (step, pruning), words in itertools.product(enumerate(EVERY), WORDS):
        seen = observation(step, words, stamp_s=float(step))
        expected = direct.infer(Request(seen, pruning))
        for _ in range(5):  # called, captured, replayed
            assert same(graphs.infer(Request(seen, pruning)), expected)
            drafted = graphs.infer(Request(seen, pruning, draft=Draft(expected.tokens)))
            assert same(drafted, expected, 1e-5 if dtype == "float32" else 0.05)
        assert graphs.engine.warm


@cuda
def test_a_cuda_step_allocates_nothing_that_stays(folder):
    policy = load_cuda(folder)
    run: Callable[[Observation], object] = lambda seen: policy.infer(Request(seen, PruningSettings(keep_ratio=0.5)))  # noqa: E731
    for step in range(9):
        run(observation(step))
    assert policy.engine.warm
    before = torch.cuda.memory_allocated()
    for step in range(20):
        run(observation(step))
    assert torch.cuda.memory_allocated() == before


def load_cuda(folder: Path) -> OpenVLAPolicy:
    return OpenVLAPolicy.load(ModelSettings(checkpoint=str(folder), device="cuda", engine="static"))
