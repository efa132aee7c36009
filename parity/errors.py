"""The errors a user meets. Each message says what was wrong, where, and what to do."""

from __future__ import annotations


class ParityError(Exception):
    """What the user gave cannot be used: shown as one line, never as a traceback."""


class MissingPackage(ParityError):
    """A path needs packages that are not installed; the message holds the install command."""


class Unsupported(ParityError):
    """A converter's clear no: it names what it cannot convert, with its arguments, and how to add it."""
