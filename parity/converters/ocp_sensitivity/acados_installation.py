"""Where acados is, and how it gets there. The registry's wheel brings a CasADi of its own, so it is kept apart.

Installed beside the real CasADi it would replace it silently, and uninstalling it would gut it: hence a folder of its
own, without its CasADi, that only the engine's worker process sees.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from parity.errors import MissingPackage, ParityError, Unsupported

REQUIREMENT = "comma-deps-acados==0.2.2.*"
VARIABLE = "PARITY_ACADOS"
LIBRARIES = ("libblasfeo.so", "libhpipm.so", "libqpOASES_e.so.3.1", "libacados.so")
"""In the order in which they must be loaded: the wheel's libraries do not know where their neighbours lie."""


def default_folder() -> Path:
    """`$PARITY_ACADOS`, or a folder in the user's data directory."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "pytest-parity" / "acados"


def library_folder(folder: Path) -> Path:
    return folder / "acados" / "install" / "lib"


def find() -> Path:
    """The folder of the installation.

    Raises MissingPackage (acados, make or a C compiler), or Unsupported for a processor that its libraries cannot run
    on.
    """
    folder = default_folder()
    if not (library_folder(folder) / "libacados.so").is_file():
        raise MissingPackage(f"acados is not installed in {folder}: run `parity setup acados`")
    tools = [name for name in ("make", "cc") if shutil.which(name) is None]
    if tools:
        raise MissingPackage(f"acados compiles the code that it generates and needs {' and '.join(tools)} on the PATH")
    processor = Path("/proc/cpuinfo")
    if processor.is_file() and not {"avx2", "fma"} <= set(processor.read_text(encoding="utf-8").split()):
        raise Unsupported("the registry's acados is compiled for processors with AVX2 and FMA: this one has not both")
    return folder


def install(folder: Path | None = None) -> Path:
    """Install the registry's wheel by pip, without its CasADi. Raises ParityError with pip's last line."""
    folder = folder or default_folder()
    target = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(target, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ParityError(f"pip could not install {REQUIREMENT}: {_last_line(done.stderr)}")
        shutil.rmtree(target / "casadi", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        target.rename(folder)
    except OSError as error:
        raise ParityError(
            f"cannot install acados to {folder}: {error.strerror}; choose another by {VARIABLE}"
        ) from error
    finally:
        shutil.rmtree(target, ignore_errors=True)
    return folder


def version(folder: Path) -> str:
    """The wheel's version, from its metadata."""
    found = [path.name for path in folder.glob("comma_deps_acados-*.dist-info")]
    return found[0].removeprefix("comma_deps_acados-").removesuffix(".dist-info") if found else "unknown"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
