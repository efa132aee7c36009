"""The compiled form: generated C, built by the system's compiler and loaded as a CasADi function with derivatives."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import casadi

from parity.errors import ParityError

FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
         "-fassociative-math")  # fmt: skip
"""The last three let the compiler use vector instructions for sums; infinities and NaN keep their meaning."""
PRODUCT = """
/* Four elements at once: GCC and Clang make vector instructions of it. Not aligned, for columns begin anywhere. */
typedef casadi_real casadi_four __attribute__((vector_size(4 * sizeof(casadi_real)), aligned(sizeof(casadi_real))));
#define CASADI_FOUR(p) (*(const casadi_four*)(p))
#define CASADI_CHUNK 256

/* z += x * y for one row x of n elements: dot products along contiguous columns of y, four at a time */
static void casadi_row_product(const casadi_real* x, casadi_int n, const casadi_real* y, casadi_int step_y,
                               casadi_int p, casadi_real* z, casadi_int step_z) {
  casadi_int j, k, q, r;
  for (j = 0; j < p; j += 4) {
    casadi_int count = p - j < 4 ? p - j : 4;
    casadi_four s[4] = {{0}};
    for (k = 0; k + 4 <= n; k += 4) {
      if (count == 4) for (q = 0; q < 4; ++q) s[q] += CASADI_FOUR(x + k) * CASADI_FOUR(y + k + (j + q) * step_y);
      else for (q = 0; q < count; ++q) s[q] += CASADI_FOUR(x + k) * CASADI_FOUR(y + k + (j + q) * step_y);
    }
    for (q = 0; q < count; ++q) {
      casadi_real t = 0;
      for (r = k; r < n; ++r) t += x[r] * y[r + (j + q) * step_y];
      z[(j + q) * step_z] += t + s[q][0] + s[q][1] + s[q][2] + s[q][3];
    }
  }
}

/* z (m, p) += x (m, n) * y (n, p), columns first: blocks of 4 by 8 elements of z in registers, then what is left */
static void casadi_mtimes_dense(const casadi_real* x, casadi_int m, casadi_int n, const casadi_real* y, casadi_int p,
                                casadi_real* z, casadi_int tr) {
  casadi_int i, j, k, q, r;
  casadi_real row[CASADI_CHUNK];
  if (tr) {
    for (j = 0; j < p; ++j) casadi_row_product(y + j * m, m, x, m, n, z + j * n, 1);
    return;
  }
  for (i = 0; i + 4 <= m; i += 4) {
    for (j = 0; j + 8 <= p; j += 8) {
      casadi_four s[8] = {{0}};
      for (k = 0; k < n; ++k)
        for (q = 0; q < 8; ++q) s[q] += CASADI_FOUR(x + i + k * m) * y[k + (j + q) * n];
      for (q = 0; q < 8; ++q) for (r = 0; r < 4; ++r) z[i + r + (j + q) * m] += s[q][r];
    }
    for (; j < p; ++j) {
      casadi_four s[4] = {{0}};
      for (k = 0; k + 4 <= n; k += 4)
        for (q = 0; q < 4; ++q) s[q] += CASADI_FOUR(x + i + (k + q) * m) * y[k + q + j * n];
      for (; k < n; ++k) s[0] += CASADI_FOUR(x + i + k * m) * y[k + j * n];
      s[0] += s[1] + s[2] + s[3];
      for (r = 0; r < 4; ++r) z[i + r + j * m] += s[0][r];
    }
  }
  for (; i < m; ++i) {
    for (k = 0; k < n; k += CASADI_CHUNK) {
      casadi_int count = n - k < CASADI_CHUNK ? n - k : CASADI_CHUNK;
      for (r = 0; r < count; ++r) row[r] = x[i + (k + r) * m];
      casadi_row_product(row, count, y + k, n, p, z + i, m);
    }
  }
}
"""
"""In the place of CasADi's three plain loops, which no compiler makes fast."""


def compile_function(
    function: casadi.Function, derivatives: Sequence[casadi.Function], folder: Path | None
) -> casadi.Function:
    """The function as an `external`, with those derivative functions. Source and library stay in `folder`, if given.

    Raises ParityError if there is no compiler (`CC`, or gcc), or if it fails.
    """
    if folder is not None:
        return _build(function, derivatives, Path(folder))
    with TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as temporary:
        return _build(function, derivatives, Path(temporary))  # a loaded library needs its file no more


def _build(function: casadi.Function, derivatives: Sequence[casadi.Function], folder: Path) -> casadi.Function:
    folder.mkdir(parents=True, exist_ok=True)
    source, library = folder / f"{function.name()}.c", folder / f"{function.name()}.so"
    source.write_text(c_source([function, *derivatives]), encoding="utf-8")
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise ParityError(
            f"form='c' needs a C compiler, and {os.environ.get('CC', 'gcc')} is not found: install it, or name one in CC"
        )
    done = subprocess.run(
        [compiler, *FLAGS, str(source), "-o", str(library), "-lm"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise ParityError(f"{compiler} cannot compile {source}: {reason}")
    return casadi.external(function.name(), str(library))


def c_source(functions: Sequence[casadi.Function]) -> str:
    """Generated C of the functions, its product of dense matrices replaced by a faster one."""
    generator = casadi.CodeGenerator("functions.c")
    for function in functions:
        generator.add(function)
    plain = re.compile(r"^void casadi_mtimes_dense\(.*?^}\n", re.MULTILINE | re.DOTALL)
    return plain.sub(lambda _: PRODUCT, generator.dump(), count=1)
