"""The random checkpoint has the names, shapes, types and shards of OpenVLA-7B, as the official classes list them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flashvla_ros.vla.random_checkpoint import config_of_size, main, plan_shards, tensor_shapes, write_random_checkpoint

OFFICIAL = json.loads(gzip.decompress((Path(__file__).parent / "data/openvla-7b.tensors.json.gz").read_bytes()))


def test_the_7b_plan_is_the_official_layout() -> None:
    shards = plan_shards(tensor_shapes(config_of_size("7b")))
    plan = {
        name: [file, "bfloat16", list(shape)] for file, tensors in shards.items() for name, shape in tensors.items()
    }
    assert list(plan.items()) == list(OFFICIAL["tensors"].items())


def test_a_written_checkpoint_holds_its_plan_in_shards(tmp_path: Path) -> None:
    config = config_of_size("tiny")
    write_random_checkpoint(tmp_path, config, shard_bytes=2_100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shapes = tensor_shapes(config)
    assert set(index["weight_map"]) == set(shapes)
    assert len(set(index["weight_map"].values())) == 3
    size = 0
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="pt") as shard:
            tensor = shard.get_tensor(name)
        assert tuple(tensor.shape) == shapes[name]
        assert tensor.dtype == torch.bfloat16
        size += tensor.numel() * 2
    assert index["metadata"]["total_size"] == size


def test_the_script_writes_into_new_folders_only(tmp_path: Path) -> None:
    assert main(["--size", "tiny", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "model.safetensors").is_file()
    with pytest.raises(SystemExit):
        main(["--size", "tiny", str(tmp_path / "new")])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["--size", "tiny", str(tmp_path / "file")])


MEASURE = """
import sys
from pathlib import Path
import torch
from flashvla_ros.vla.checkpoint import build_empty, load_config, load_model

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

folder = Path(sys.argv[1])
config = load_config(folder)
build_empty(config)  # so that what is imported only now does not count
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = memory("VmRSS:")
model = load_model(folder, config, torch.device("cpu"), torch.bfloat16)
print(memory("VmHWM:") - before, sum(parameter.nbytes for parameter in model.parameters()))
"""


def test_loading_needs_little_more_than_one_shard_beside_the_model(tmp_path: Path) -> None:
    tiny = config_of_size("tiny")
    # Large enough that the few MB which any first load takes do not decide.
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
    config = dataclasses.replace(tiny, text_config={**tiny.text_config, **sizes})
    write_random_checkpoint(tmp_path, config, shard_bytes=75_000_000)
    shards = [file.stat().st_size for file in tmp_path.glob("model-*.safetensors")]
    assert sum(shards) > 2.5 * max(shards)
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout
    peak, weights = map(int, output.split())
    assert peak - weights < 1.2 * max(shards)
