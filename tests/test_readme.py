"""Every command and every piece of code in the README works as written."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(match[1], match[2]) for match in re.finditer(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)]
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if language == "console" for line in code.splitlines()]
PARITY = [line for line in COMMANDS if line.startswith("parity ")]
DYNAMICS = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
"""
KERAS = """
from parity.cases.keras_backend import keras
layers = keras.layers
parts = [layers.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(2)]
keras.Sequential(parts).save("MODEL.keras")
"""
ONNX = """
import dynamics, torch
torch.onnx.export(dynamics.build(), (torch.randn(1, 3),), "MODEL.onnx", dynamo=False)
"""
CONVERTER = """
import parity

@parity.converter("torch", "casadi")
def my_converter(model, example):
    return parity.convert(model, "casadi", example)
"""


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    program = [sys.executable, "-m", {"parity": "parity.cli", "pytest": "pytest"}[words[0]], *words[1:]]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A downstream repository with model files, a module that builds a model, a converter and two runs."""
    folder = tmp_path_factory.mktemp("downstream")
    (folder / "dynamics.py").write_text(DYNAMICS)
    (folder / "conftest.py").write_text(CONVERTER)
    torch_save = "import torch, dynamics; torch.save(dynamics.build(), 'MODEL.pt')"
    for code in (torch_save, KERAS, ONNX):
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    for name in ("before", "after"):
        done = run(f"pytest --parity -q -k 'recipe-0-1' --parity-report reports/{name}", folder)
        assert done.returncode == 0, done.stdout
        assert f"report: {folder}/reports/{name}/index.html" in done.stdout
    return folder


@pytest.mark.parametrize("command", PARITY)
def test_command_works(command: str, repository: Path) -> None:
    done = run(command, repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout and not done.stderr


def test_code_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pieces without tests run one after the other; the example on lowering then converts its layer."""
    for code in PYTHON:
        if "def test_" not in code:
            use = "parity.assert_parity(Swish(), 'reference', torch.randn(2, 3))\n" if "class Swish" in code else ""
            subprocess.run([sys.executable, "-c", code + use], cwd=tmp_path, check=True)


def test_tests_pass(tmp_path: Path) -> None:
    (code,) = [code for code in PYTHON if "def test_" in code]
    (tmp_path / "test_mine.py").write_text(code)
    done = run("pytest --parity test_mine.py -q -p no:cacheprovider", tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)


def test_tox_runs_what_the_readme_and_ci_say() -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    environments = {section.partition(":")[2] for section in tox.sections()}
    named = re.findall(r"tox(?: -q)? -e ([\w,]+)", TEXT + (ROOT / ".ci" / "run").read_text())
    assert len(named) == 3
    assert {name for names in named for name in names.split(",")} <= environments


def test_options_are_the_plugins() -> None:
    from parity.plugin import OPTIONS

    assert set(re.findall(r"`--parity-(\w+)", TEXT)) == set(OPTIONS)


def test_pictures_exist() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)
