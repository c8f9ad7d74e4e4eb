"""What a table was made with: enough to make it again, nothing of this machine's paths."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import read_json
from flashvla_ros.core.flops import ModelSize
from flashvla_ros.core.provenance import EVALUATION, checkpoint_fingerprint
from flashvla_ros.core.settings import ModelSettings, Settings
from flashvla_ros.evaluation.ledger import code_digest
from flashvla_ros.evaluation.plan import Evaluation
from flashvla_ros.evaluation.suites import tasks_of
from flashvla_ros.evaluation.summary import suites_in
from flashvla_ros.sim.libero.protocol import check_images, is_libero
from flashvla_ros.sim.perturbation import NONE
from flashvla_ros.sim.tasks import TASKS


def known_tasks(checkpoint: Path) -> list[str]:
    """Return the demo's tasks that a checkpoint was published with, all of the table where that is not known.

    Raises:
        FlashVLAError: It was published with LIBERO's.
    """
    try:
        tasks = dict.fromkeys(row["task"] for row in read_json(checkpoint / EVALUATION)["rows"])
    except (FlashVLAError, KeyError, TypeError):
        return list(TASKS)
    if suites := suites_in(tasks):
        raise FlashVLAError(f"{checkpoint} knows tasks of LIBERO: say which with --suite {' '.join(suites)}")
    return [task for task in tasks if task in TASKS] or list(TASKS)


def checkpoint_name(folder: Path) -> str:
    """Return a short name: the folder's own, or the run's if the folder is a run's ``checkpoint``."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "checkpoint" else folder.name


def meta_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return the ``meta`` of an evaluation's JSON.

    Raises:
        CheckpointError: The folder is no checkpoint, or one that sees more cameras than the robot has.
        SettingsError: A mode asks for what this checkpoint does not have.
    """
    from flashvla_ros.vla.arch.table import architecture_of
    from flashvla_ros.vla.config import model_size
    from flashvla_ros.vla.pruning.select import check_layer

    sizes: dict[ModelSettings, ModelSize] = {}
    for settings in map(evaluation.settings, evaluation.modes):
        if (model := settings.model) not in sizes:
            config = architecture_of(model).outline(evaluation.checkpoint, model).config
            check_images(config.num_images_in_input)
            sizes[model] = model_size(config)
        check_layer(settings.pruning, sizes[model].decoder.layers)
    size = next(iter(sizes.values()))
    return meta(
        _device(evaluation),
        checkpoint={
            "name": checkpoint_name(evaluation.checkpoint),
            "sha256": checkpoint_fingerprint(evaluation.checkpoint),
            "visual_tokens": size.visual_tokens,
            "decoder": str(size.decoder),
            "vision_flops": size.vision_flops(),
        },
        command=command_line(evaluation),
        tasks=list(evaluation.tasks),
        modes={mode.name: dict(mode.values) for mode in evaluation.modes},
        perturbations=list(evaluation.perturbations),
        seeds=[evaluation.seeds[0], evaluation.seeds[-1]],
        episodes=len(evaluation.seeds),
        free_running=evaluation.free_running,
        code=code_digest(),
        settings=Settings().with_values(evaluation.shared).values(),
    )


def command_line(evaluation: Evaluation) -> str:
    """Return the command that plays these episodes, with DIR for the checkpoint's folder."""
    words = ["flashvla-ros", "eval", "--checkpoint", "DIR"]
    suites = suites_in(evaluation.tasks)
    whole = evaluation.tasks == tuple(task for suite in suites for task in tasks_of(suite))
    words += ["--suite", *suites] if whole else ["--tasks", *evaluation.tasks]
    words += ["--modes", *(mode.name for mode in evaluation.modes)]
    words += ["--episodes", str(len(evaluation.seeds)), "--seed", str(evaluation.seeds[0])]
    if evaluation.perturbations != (NONE,):
        words += ["--perturb", *evaluation.perturbations]
    if is_libero(evaluation.tasks[0]):  # without it, the size of the checkpoint's images would say so
        words += ["--render", evaluation.render]
    for name, value in evaluation.overrides.items():
        words += ["--set", f"{name}={json.dumps(value) if not isinstance(value, str) else value}"]
    return shlex.join([*words, "--free-running"] if evaluation.free_running else words)


def _device(evaluation: Evaluation) -> str:
    """Name what ran the model."""
    wanted, threads = evaluation.shared.get("model.device", "auto"), evaluation.shared["model.threads"]
    if wanted != "cpu":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name(0 if wanted == "auto" else wanted)
    return f"{processor_name()}, {os.cpu_count()} cores, {threads or 'all'} thread{'s' * (threads != 1)} a model"
