"""The compiled form: generated C, built by the system's compiler and loaded as a CasADi function with derivatives."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import casadi

from parity.converters.torch_casadi.derivatives import Expressions
from parity.errors import ParityError

FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros",
         "-fassociative-math")  # fmt: skip
"""The last three let the compiler use vector instructions for sums; infinities and NaN keep their meaning."""
APART = """/* Copied into every place that calls them, the helpers below would take the compiler minutes. */
#if defined(__GNUC__) && !defined(__clang__)
  #define CASADI_APART __attribute__((noipa, unused))
#else
  #define CASADI_APART __attribute__((noinline, unused))
#endif
"""
VECTORS = """
/* Four elements at once: GCC and Clang make vector instructions of it. Not aligned, for columns begin anywhere. */
typedef casadi_real casadi_four __attribute__((vector_size(4 * sizeof(casadi_real)), aligned(sizeof(casadi_real))));
#define CASADI_FOUR(p) (*(const casadi_four*)(p))
"""
PRODUCT = """
#define CASADI_CHUNK 256

/* z += x * y for one row x of n elements: dot products along contiguous columns of y, four at a time */
static CASADI_APART void casadi_row_product(const casadi_real* x, casadi_int n, const casadi_real* y, casadi_int step_y,
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
static CASADI_APART void casadi_mtimes_dense(const casadi_real* x, casadi_int m, casadi_int n, const casadi_real* y,
                                             casadi_int p, casadi_real* z, casadi_int tr) {
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
SPARSE_PRODUCT = """
/* z (m, p) += x (m, n) * y (n, p, sparse): the elements of a column of z stay in registers while y is read */
static CASADI_APART void casadi_mtimes_dense_sparse(const casadi_real* x, casadi_int m, const casadi_real* y,
                                                    const casadi_int* sp_y, casadi_real* z) {
  const casadi_int p = sp_y[1], *colind = sp_y + 2, *row = sp_y + 3 + p;
  casadi_int i, j, k, r;
  for (j = 0; j < p; ++j) {
    casadi_real* column = z + j * m;
    for (i = 0; i + 8 <= m; i += 8) {
      casadi_four low = CASADI_FOUR(column + i), high = CASADI_FOUR(column + i + 4);
      for (k = colind[j]; k < colind[j + 1]; ++k) {
        low += CASADI_FOUR(x + row[k] * m + i) * y[k];
        high += CASADI_FOUR(x + row[k] * m + i + 4) * y[k];
      }
      for (r = 0; r < 4; ++r) column[i + r] = low[r], column[i + 4 + r] = high[r];
    }
    for (; i < m; ++i) {
      casadi_real t = 0;
      for (k = colind[j]; k < colind[j + 1]; ++k) t += x[row[k] * m + i] * y[k];
      column[i] += t;
    }
  }
}
"""
"""In the place of CasADi's plain loops, which no compiler makes fast."""


@dataclass(frozen=True)
class Sources:
    """A function and its derivatives: of first order, its gradient, and the gradient's."""

    function: Expressions
    first: dict[str, casadi.Function]
    gradient: Expressions
    second: dict[str, casadi.Function]

    def functions(self) -> list[casadi.Function]:
        known = {**self.first, **self.second}
        made = [expressions.function() for expressions in (self.function, self.gradient)]
        return [*made, *(function for name, function in known.items() if name != self.gradient.name)]


def compile_function(sources: Sources, folder: Path | None) -> casadi.Function:
    """The function, compiled, with its derivatives. C source and library stay in `folder`, if given.

    Raises ParityError if there is no compiler (`CC`, or gcc), or if it fails.
    """
    if folder is not None:
        return _load(sources, _build(sources, folder))
    with TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as temporary:
        return _load(sources, _build(sources, Path(temporary)))  # a loaded library needs its file no more


def _build(sources: Sources, folder: Path) -> Path:
    name = os.environ.get("CC", "gcc")
    compiler = shutil.which(name)
    if compiler is None:
        raise ParityError(f"form='c' needs a C compiler, and {name} is not found: install gcc, or name another in CC")
    folder.mkdir(parents=True, exist_ok=True)
    source, library = (folder / f"{sources.function.name}{ending}" for ending in (".c", ".so"))
    source.write_text(c_source(sources.functions()), encoding="utf-8")
    command = [compiler, *FLAGS, str(source), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise ParityError(f"{compiler} cannot compile {source}: {reason}")
    return library


def _load(sources: Sources, library: Path) -> casadi.Function:
    """A function that calls the compiled one, and holds its derivatives.

    Of an external function itself CasADi would ask derivatives by powers of two of directions only.
    """
    importer = casadi.Importer(str(library.resolve()), "dll")

    def compiled(expressions: Expressions, derivatives: dict[str, casadi.Function]) -> casadi.Function:
        external = casadi.external(expressions.name, importer)
        calling = replace(expressions, outputs=external.call([*expressions.inputs]))
        return calling.function(derivatives)

    first, second = (
        {name: casadi.external(name, importer) for name in made} for made in (sources.first, sources.second)
    )
    return compiled(sources.function, first | {sources.gradient.name: compiled(sources.gradient, second)})


def c_source(functions: Sequence[casadi.Function]) -> str:
    """Generated C of the functions, its products replaced by faster ones."""
    generator = casadi.CodeGenerator("functions.c")
    for function in functions:
        generator.add(function)
    text = re.sub(r"^void casadi_(?=\w+\()", "static CASADI_APART void casadi_", generator.dump(), flags=re.MULTILINE)
    for name, faster in (("mtimes_dense", PRODUCT), ("mtimes_dense_sparse", SPARSE_PRODUCT)):
        plain = re.compile(rf"^static CASADI_APART void casadi_{name}\(.*?^}}\n", re.MULTILINE | re.DOTALL)
        text = plain.sub(faster.replace("\\", "\\\\"), text, count=1)
    # After the definition of casadi_real, and before anything that needs them.
    return APART + text.replace(
        "/* Add prefix to internal symbols */", VECTORS + "/* Add prefix to internal symbols */", 1
    )
