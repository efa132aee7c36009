"""Real input: a classifier of handwritten digits, trained here in a few seconds on scikit-learn's images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from parity.errors import MissingPackage

if TYPE_CHECKING:
    from parity.cases.keras_backend import keras


def load() -> tuple[np.ndarray, np.ndarray]:
    """1797 images (8, 8, 1) with values from 0 to 1, and their digits. Raises MissingPackage."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPackage("the digits are scikit-learn's: pip install scikit-learn") from None
    images, digits = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32), np.asarray(digits)


def train(model: keras.Model, seed: object, epochs: int = 4) -> float:
    """Train a model of images to logits, in place; gives its accuracy on images that it was not trained on."""
    from parity.cases.keras_backend import keras
    from parity.cases.keras_modules import fill

    fill(model, seed)
    keras.utils.set_random_seed(0)  # batches and dropout
    images, digits = load()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(images[300:], digits[300:], batch_size=32, epochs=epochs, verbose=0)
    _, accuracy = model.evaluate(images[:300], digits[:300], verbose=0)
    return float(accuracy)
