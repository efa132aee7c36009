"""Keras on TensorFlow, for every module of this package that uses it.

Keras reads its backend while it is imported, and TensorFlow how much it logs; what the user set is left alone. What
TensorFlow writes to standard error before it knows about log levels (processor features, missing GPU drivers) is not
shown.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextmanager
def _quiet() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with _quiet():
    import keras
    import tensorflow

__all__ = ["keras", "tensorflow"]
