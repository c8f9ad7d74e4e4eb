"""Recorded episodes of the benchmark of scores: whole, or not there."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from benchmarks import score


def test_an_episode_whose_writing_was_cut_off_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(file: IO[bytes] | Path, **_: Any) -> None:
        file.write_bytes(b"PK") if isinstance(file, Path) else file.write(b"PK")
        raise KeyboardInterrupt

    path = tmp_path / "demo_drawer-open_0.npz"
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", cut_off)
        with pytest.raises(KeyboardInterrupt):
            score.write(path, act=np.zeros((2, 7)))
    assert not path.exists()
    score.write(path, act=np.ones((2, 7)), success=np.array(True))
    ((task, stored),) = score.read(tmp_path)["demo"]
    assert task == "drawer-open" and stored["success"] and stored["act"].sum() == 14.0


@pytest.mark.parametrize("left", [0, 2, 100, -1])
def test_a_broken_episode_ends_in_one_line(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "demo_drawer-open_0.npz"
    score.write(path, act=np.random.default_rng(0).random((9, 7)))
    path.write_bytes(path.read_bytes()[:left])
    monkeypatch.setattr("sys.argv", ["score", "analyse", str(tmp_path)])
    assert score.main() == 2
    error = capsys.readouterr().err
    assert f"{path} is no whole episode" in error and error.count("\n") == 1
