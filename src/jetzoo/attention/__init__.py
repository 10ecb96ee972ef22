"""One attention function for all layers; `reference` is the truth the others are checked by."""

from .dispatch import BACKENDS, attention

__all__ = ["BACKENDS", "attention"]
