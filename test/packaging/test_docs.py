"""The documentation says what exists: commands, files, links, parameters; and it stays as short as it was promised."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from checkpoints import tiny_config, write_checkpoint
from rclpy.context import Context

from flashvla_ros import __main__ as command_line
from flashvla_ros.cli.parameter_files import quote_for_rcl
from flashvla_ros.core.settings import PARAMETERS, Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.doctor.checkpoint import check_checkpoint
from flashvla_ros.doctor.finding import Level
from flashvla_ros.guard.settings import GuardSettings
from flashvla_ros.nodes.commands import make_encoder
from flashvla_ros.remote.loading import FROM_SETTINGS
from flashvla_ros.sim.settings import ROBOT_PARAMETERS

ROOT = Path(__file__).parents[2]
README, PARAMETER_PAGE = ROOT / "README.md", ROOT / "docs" / "parameters.md"
# Tables to look up, not to read, have no budget: over a hundred findings, and the hazards of the safety case.
TABLES = [ROOT / "docs" / "findings.md", ROOT / "docs" / "guard.md"]
HAND_WRITTEN = sorted(set((ROOT / "docs").glob("*.md")) - {PARAMETER_PAGE, *TABLES})
PAGES = [README, *HAND_WRITTEN, PARAMETER_PAGE, *TABLES]
OTHERS = sorted([*ROOT.glob("models/*/README.md"), *ROOT.glob("benchmarks/*.md"), ROOT / "test/parity/README.md"])

MOST_PAGES, MOST_WORDS_A_PAGE, MOST_WORDS, MOST_README_LINES = 19, 1500, 22_803, 120
STILTED = ("that of", "beside", "anew", "whom", "likewise", "where nobody says")
MODULES_TO_RUN = {"flashvla_ros.vla.random_checkpoint"}  # the only ones of the package that a page runs with -m


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


# Size and language.


def test_the_pages_are_few_and_short() -> None:
    words = {name_of(path): len(page(path).split()) for path in [*HAND_WRITTEN, README]}
    assert len(HAND_WRITTEN) <= MOST_PAGES
    assert {name: count for name, count in words.items() if count > MOST_WORDS_A_PAGE} == {}
    assert sum(words.values()) <= MOST_WORDS
    assert len(page(README).splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("path", [*HAND_WRITTEN, README, TABLES[0]], ids=name_of)
def test_the_language_is_plain(path: Path) -> None:
    text = " ".join(page(path).split()).lower()
    assert [words for words in STILTED if re.search(rf"\b{words}\b", text)] == []


# Links.


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page(path)))
    return [link for link in found if not link.startswith(("http:", "https:"))]


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links(README)}
    assert [name_of(path) for path in [*HAND_WRITTEN, PARAMETER_PAGE, TABLES[0]] if path not in linked] == []


def test_every_page_that_a_file_mentions_exists() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    missing = []
    for name in tracked:
        path = ROOT / name
        if path.suffix not in {".py", ".md", ".rst", ".yaml", ".xml", ".sh", ".msg", ".cfg", ".toml", ".txt", ""}:
            continue
        if path.is_file():
            mentioned = re.findall(r"\bdocs/\w[\w./-]*\w", path.read_text(encoding="utf-8", errors="ignore"))
            missing += [f"{name}: {page}" for page in mentioned if not (ROOT / page).exists()]
    assert missing == []


# Tests.


def test_every_test_that_holds_a_finding_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page(TABLES[0]))
    assert len(named) > 80
    defined = {file: set(re.findall(r"^def (test_\w+)", page(ROOT / "test" / file), re.MULTILINE)) for file, _ in named}
    assert [f"{file}::{name}" for file, name in named if name not in defined[file]] == []


# Commands.


def commands(path: Path) -> Iterator[list[str]]:
    """Every command line of a page, in words: of indented and fenced blocks, and in back quotes."""
    text = page(path)
    blocks = re.findall(r"^ *```(?:bash|sh)?\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(re.findall(r"^ {4,}(.*)$", prose(text), re.MULTILINE) + blocks)
    lines = re.sub(r"\\\n\s*", " ", lines)
    quoted = re.findall(r"`([^`\n]+)`", prose(text))
    for line in [*lines.splitlines(), *quoted]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # no command: output, YAML, an apostrophe
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment
            words = words[1:]
        if words:
            yield words


def commands_of(program: str) -> list[Any]:
    """The commands that start with these words, each once, without them."""
    start = program.split()
    found = {
        (name_of(path), *words[len(start) :])
        for path in [*PAGES, *OTHERS]
        for words in commands(path)
        if words[: len(start)] == start
    }
    return [pytest.param(list(words), id=" ".join([name, program, *words])) for name, *words in sorted(found)]


def test_commands_are_found_in_blocks_and_sentences() -> None:
    found = {" ".join(words) for path in PAGES for words in commands(path)}
    assert "flashvla-ros tune" in found  # in a sentence
    assert "flashvla-ros replay run" in found  # with a comment behind it
    assert any(
        line.startswith("flashvla-ros bringup --camera") and "dry_run=true" in line for line in found
    )  # two lines
    assert "bench --model mid --rounds 20 --json out.json" in " ".join(found)


@pytest.mark.parametrize("words", commands_of("flashvla-ros"))
def test_every_flashvla_ros_command_is_understood(words: list[str]) -> None:
    if len(words) == 1:  # the name of a command, in a sentence
        assert words[0] in {command.name for command in command_line.COMMANDS}
    elif words:
        command_line._parser(words[0]).parse_args(words)


class Understood(Exception):  # noqa: N818 - no error
    """The arguments were understood, and nothing else is to happen."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    original = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, arguments: Any = None, namespace: Any = None) -> None:
        original(parser, arguments, namespace)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("words", commands_of("python -m"))
def test_every_module_that_is_run_takes_its_arguments(
    words: list[str], parse_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *arguments = words
    assert not module.startswith("flashvla_ros.") or module in MODULES_TO_RUN
    if len(words) > 1:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Understood):
            runpy.run_module(module, run_name="__main__")
    else:
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists() or (
            ROOT / module.replace(".", "/")
        ).is_dir()


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", page(ROOT / "Makefile"), re.MULTILINE))
    asked = {words.values[0][0] for words in commands_of("make") if words.values[0]}
    assert asked
    assert asked <= targets


def test_every_launch_argument_exists() -> None:
    tables = [
        set(ast.literal_eval(node.value))
        for node in ast.parse(page(ROOT / "launch" / "bringup.launch.py")).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").endswith("ARGUMENTS")
    ]
    known = set.union(*tables)
    asked = [words.values[0] for words in commands_of("ros2 launch flashvla_ros")]
    assert asked
    for file, *arguments in asked:
        assert (ROOT / "launch" / file).is_file()
        assert {argument.partition(":=")[0] for argument in arguments} <= known


# Parameters.


def test_every_parameter_that_is_named_exists() -> None:
    groups = "|".join(sorted({row.name.partition(".")[0] for row in PARAMETERS}))
    known = {row.name for row in PARAMETERS}
    unknown = []
    for path in PAGES:
        for name in re.findall(rf"`({groups})\.(\w+)", page(path)):
            is_file = (ROOT / "flashvla_ros" / name[0] / f"{name[1]}.py").is_file() or name[1] in {"py", "safetensors"}
            is_pattern = name[1].endswith("_")
            if ".".join(name) not in known and not is_file and not is_pattern:
                unknown.append(f"{name_of(path)}: {'.'.join(name)}")
    assert unknown == []


def parameter_files() -> Iterator[Any]:
    """Every parameter file, and every block of YAML in a page."""
    for path in sorted((ROOT / "config").glob("*.yaml")):
        if "ros__parameters" in page(path):
            yield pytest.param(page(path), id=name_of(path))
    for path in [*PAGES, *OTHERS]:
        blocks = re.findall(r"^( *)```yaml\n(.*?)^ *```$", page(path), re.MULTILINE | re.DOTALL)
        for number, (indent, block) in enumerate(blocks):
            text = "\n".join(line.removeprefix(indent) for line in block.splitlines())
            yield pytest.param(text, id=f"{name_of(path)} {number}")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Parameters by their full names; a block may nest them or write the dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("text", list(parameter_files()))
def test_every_parameter_file_is_accepted_by_rcl_the_table_the_command_and_the_doctor(
    text: str, tmp_path: Path
) -> None:
    (file := tmp_path / "file.yaml").write_text(text, encoding="utf-8")
    rclpy.init(context=(context := Context()), args=quote_for_rcl(["--ros-args", "--params-file", str(file)], tmp_path))
    context.shutdown()  # rcl has read it; it refuses a list of 0 and 0.5, for one
    nodes = {name: flat(node["ros__parameters"]) for name, node in yaml.safe_load(text).items()}
    robot = {row.name: row for row in ROBOT_PARAMETERS}
    for node in [name for name in nodes if name.endswith("/robot")]:
        for name, value in nodes.pop(node).items():
            robot[name].parse(value)
    for node in [name for name in nodes if name.endswith("/guard")]:
        GuardSettings.of(nodes.pop(node))
    if not nodes:  # the guard's own file
        return
    [values] = nodes.values()
    settings = Settings().with_values(values)
    spec = ActionSpec.of(settings.action)
    make_encoder(settings.command, spec)
    if settings.model.remote:
        FROM_SETTINGS.precheck(settings)
        return
    ends = [sorted(settings.action.gripper) if gripper else [-1.0, 1.0] for gripper in spec.gripper_mask]
    low, high = (list(values) for values in zip(*ends, strict=True))
    statistics = {"action": {"q01": low, "q99": high, "mask": (~spec.gripper_mask).tolist()}}
    key = settings.model.unnorm_key or "data"
    folder = write_checkpoint(tmp_path / "checkpoint", tiny_config(norm_stats={key: statistics}))
    findings = list(check_checkpoint(folder, settings))
    assert "mapping" in {finding.name for finding in findings}
    assert [finding.text for finding in findings if finding.level is Level.FAILURE] == []


# The walk through the code, and the table of findings.


def test_every_test_that_the_findings_name_exists() -> None:
    named = re.findall(r"`([a-z_]+/\w+\.py)::(\w+)`", page(ROOT / "docs" / "findings.md"))
    assert len(named) > 100
    assert [one for one in named if f"def {one[1]}(" not in page(ROOT / "test" / one[0])] == []


def test_every_file_and_name_of_the_architecture_exists() -> None:
    text = page(ROOT / "docs" / "architecture.md")
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`(?: \(`([\w.]+)`\))?", text)
    assert len(named) > 20
    for file, name in named:
        path = next((path for path in (ROOT / "flashvla_ros" / file, ROOT / file) if path.exists()), None)
        assert path is not None, file
        for part in filter(None, name.split(".")):
            assert re.search(rf"\b(def|class) {part}\b", page(path)), f"{file}: {name}"
