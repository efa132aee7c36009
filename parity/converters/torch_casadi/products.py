"""Matrix products of CasADi expressions, by BLAS where that pays.

CasADi's own product of dense matrices is three plain loops. From 3.8 on a product may name a BLAS plugin instead,
which is many times faster for large matrices (256×256 times 256×8: 73 µs against 1175 µs) and slower for tiny ones.
Derivatives that CasADi makes itself forget the name; those of `parity.converters.torch_casadi.derivatives` keep it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import casadi

SMALLEST = 2048
"""Multiplications from which on BLAS is faster than CasADi's loops (measured on x86-64; it does not matter much)."""
_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_products(plain: bool = True) -> Iterator[None]:
    """Within it products are CasADi's own loops, if `plain`: C code generated from them needs no library."""
    token = _plain.set(plain)
    try:
        yield
    finally:
        _plain.reset(token)


def multiply(x: casadi.MX, y: casadi.MX, start: casadi.MX | None = None) -> casadi.MX:
    """`x @ y + start`, a dense matrix."""
    if start is None:
        start = casadi.MX(casadi.DM.zeros(x.size1(), y.size2()))
    name = plugin(x, y)
    return casadi.mac(x, y, start, name) if name else casadi.mac(x, y, start)


def plugin(x: casadi.MX, y: casadi.MX) -> str | None:
    """The BLAS to multiply them by, if any: BLASFEO is the faster one for a vector, OpenBLAS for matrices."""
    rows, inner, columns = x.size1(), x.size2(), y.size2()
    if _plain.get() or rows * inner * columns < SMALLEST or not x.is_dense() or not y.is_dense():
        return None
    name = "blasfeo" if 1 in (rows, columns) else "classic"
    return name if _available(name) else None


@cache
def _available(name: str) -> bool:
    return hasattr(casadi, "has_blas") and bool(casadi.has_blas(name))


def transposed(x: casadi.MX) -> casadi.MX:
    """A constant is transposed here and now: CasADi would do it in every call."""
    return casadi.MX(x.to_DM().T) if x.is_constant() else x.T
