"""The documentation does what it says: links lead somewhere, examples run, commands and keys exist."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ksim.cli import VERBS, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "robots/kbot/policies/README.md"]
# "Save as `name`:", and the block that follows: what a reader saves is what is tested
SAVED = re.compile(r"^Save as `([^`\n]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# the scripts of the docs, which are the ksim command with a task more
SCRIPTS = ("even_standing", "my_observations", "crouch_tasks")
# (configuration, overrides): the reward is put in by its class's name, on the robot of the docs
STEPPED = [
    ("my_observations.yaml", []),
    ("crouch.yaml", []),
    ("stilts.yaml", ["rewards.even.kind=EvenStandingReward"]),
]

# A reset and a step of one environment of each.
STEP = """
import json, sys
import jax, jax.numpy as jnp
import crouch_tasks, even_standing, my_observations
from ksim.environment import make_environment
from ksim.load import load_config

told = {}
for file, overrides in json.loads(sys.argv[1]):
    env = make_environment(load_config(file, [*overrides, "threads=1"]), 1, "mujoco")
    batch, seen = env.reset(jax.random.key(0))
    _, seen, outcome = env.step(batch, jnp.zeros((1, env.scene.actions)), jnp.asarray(env.scene.home_rad)[None])
    told[file] = {
        "inputs": {name: value[0].tolist() for name, value in seen.inputs.items()},
        "critic": seen.critic[0].tolist(),
        "rewards": {name: float(value) for name, value in outcome.terms.items()},
    }
print(json.dumps(told))
"""
# Configurations as the commands of the docs load them, in the tree and in the folder of what was saved.
LOAD = """
import importlib, json, sys
from ksim.load import load_config

for module, path, overrides in json.loads(sys.argv[1]):
    if module:
        importlib.import_module(module)
    load_config(path, overrides)
"""


def commands() -> list[tuple[Path, list[str]]]:
    """Every command of the ksim line in the pages' shell blocks, split into words: (page, words after `ksim`)."""
    found = []
    for page in PAGES:
        for block in SHELL.findall(page.read_text(encoding="utf-8")):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] == ["ksim", "--with"]:  # the same as the script of that name
                    words = ["python", *words[2:]]
                if words[:1] == ["ksim"]:
                    found.append((page, words[1:]))
                elif words[:1] == ["python"] and words[1].removesuffix(".py") in SCRIPTS:
                    found.append((page, [*words[2:], "--example", words[1].removesuffix(".py")]))
    return found


def python(folder: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in the folder of what was saved, with this tree."""
    path = os.pathsep.join([str(ROOT), str(folder)])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | variables
    return subprocess.run(
        [sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages tell their reader to save."""
    folder = tmp_path_factory.mktemp("docs")
    for page in PAGES:
        for name, text in SAVED.findall(page.read_text(encoding="utf-8")):
            path = folder / name
            assert not path.exists(), f"{page.name}: {name} is saved twice"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_to_a_file_of_the_tree(page):
    targets = [t.split("#")[0] for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    missing = [t for t in targets if t and not (page.parent / t).exists()]
    assert missing == []


def test_the_readme_leads_to_every_page_of_the_docs():
    linked = {(ROOT / t).resolve() for t in LINK.findall(PAGES[0].read_text(encoding="utf-8")) if "://" not in t}
    assert {p.resolve() for p in (ROOT / "docs").glob("*.md")} <= linked


def test_the_readme_lists_the_commands_as_the_help_does():
    rows = re.findall(r"^\| `ksim (\w+)` \| (.+) \|$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(verb, what) for verb, (_, what) in VERBS.items()]


def test_paths_that_the_pages_name_in_code_exist():
    named = re.compile(r"`((?:ksim|robots|deploy|export|toolkit|tests|configs|examples)/[\w./]+)`")
    missing = []
    for page in PAGES:
        for path in named.findall(page.read_text(encoding="utf-8")):
            if not (ROOT / path).exists():
                missing.append(f"{page.name}: {path}")
    assert missing == []


def test_the_drawing_is_well_formed_and_says_what_it_shows():
    root = ET.fromstring((ROOT / "docs/architecture.svg").read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None
    words = {e.text for e in root.iter(f"{space}text")}
    assert {"ksim", "export", "deploy", "robots", "toolkit"} <= words


def test_the_glossary_has_each_word_once_in_order_and_one_sentence_each():
    rows = re.findall(r"^\| (?!word|---)(.+?) \| (.+) \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    words = [word for word, _ in rows]
    keys = [word.strip(".").lower() for word in words]
    assert len(words) > 40 and keys == sorted(set(keys))
    assert [word for word, text in rows if not text.endswith(".") or ". " in text] == []


def test_each_page_that_adds_something_has_a_test_to_save(folder):
    assert {p.name for p in folder.glob("test_*.py")} == {
        "test_even_standing.py",
        "test_my_observations.py",
        "test_stilts.py",
        "test_crouch.py",
    }


def test_the_tests_in_the_docs_pass(folder):
    done = python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b7 passed", done.stdout), done.stdout


def test_what_the_docs_look_at_is_said_without_a_guess(folder):
    done = python(folder, "-m", "ksim.cli", "inspect", "./stilts")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("robot stilts\n") and "guess" not in done.stdout


def test_the_tasks_of_the_docs_make_a_step(folder):
    done = python(folder, "-c", STEP, json.dumps(STEPPED))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    sensing, crouch, stilts = (told[file] for file, _ in STEPPED)
    # the last number of the critic is 4 times the distance of the feet: about the K-Bot's hips apart
    assert 0.1 < sensing["critic"][-1] / 4.0 < 0.6
    assert len(sensing["inputs"]["gyroscope"]) == 3
    assert len(crouch["inputs"]["command"]) == 1 and -0.1 <= crouch["inputs"]["command"][0] <= 0.0
    assert "slip" in crouch["rewards"] and "fall" not in crouch["rewards"]
    assert len(stilts["inputs"]["joint_angles"]) == 4
    # weight 1 for a step of 20 ms, times 1 at most
    assert 0.0 < stilts["rewards"]["even"] <= 0.02 + 1e-6


def test_the_entry_point_of_the_docs_is_in_the_group_that_ksim_looks_in(folder):
    from ksim.tasks import ENTRY_POINTS

    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"][ENTRY_POINTS].items()
    parsed = importlib.metadata.EntryPoint(*entry, ENTRY_POINTS)
    assert f"def {parsed.attr}()" in (folder / f"{parsed.module}.py").read_text()


def test_an_installed_package_makes_its_task_and_the_terms_in_its_checkpoints_known(folder):
    # what pip would leave of an installed even_standing.py
    installed = folder / "even_standing-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: even-standing\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("[ksim.tasks]\neven_stand = even_standing:even_stand\n")
    write = "import json; from ksim.load import *; print(json.dumps(load_config('even_standing.yaml').to_dict()))"
    told = python(folder, "-c", write)
    assert told.returncode == 0, told.stderr
    read = (
        "import json, sys; from ksim.load import from_dict; print(from_dict(json.loads(sys.argv[1])).rewards['even'])"
    )
    done = python(folder, "-c", read, told.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "EvenStandingReward(weight=0.2, width=0.4)\n"


def test_every_configuration_that_a_command_of_the_docs_names_loads_with_its_overrides(folder):
    asked = []
    for _, words in commands():
        if "--config" not in words:
            continue
        values = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--set"]
        path = Path(words[words.index("--config") + 1])
        module = words[words.index("--example") + 1] if "--example" in words else ""
        asked.append((module, str(ROOT / path if path.parent.name == "configs" else folder / path), values))
    assert len(asked) > 8
    # the crouching task's module is imported by its own commands, before those that name its file alone
    done = python(folder, "-c", LOAD, json.dumps(sorted(asked, key=lambda a: not a[0])))
    assert done.returncode == 0, done.stderr


def test_every_command_of_the_docs_is_a_verb_with_these_options():
    helps: dict[str, list[str]] = {}
    wrong = []
    for page, (verb, *words) in commands():
        if verb not in VERBS:
            wrong.append(f"{page.name}: ksim {verb}")
            continue
        if verb not in helps:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), pytest.raises(SystemExit, match=r"^0$"):
                main([verb, "--help"])
            helps[verb] = OPTION.findall(out.getvalue())
        for word in words:
            if OPTION.fullmatch(word) and word not in ("--example", *helps[verb]):
                wrong.append(f"{page.name}: ksim {verb} {word}")
    assert wrong == []
