"""One attention function for all layers; `reference` is the truth the others are checked by.

``jetzoo.attention`` is this package; called, it is its function :func:`attention`.
"""

import sys
from types import ModuleType

from .dispatch import BACKENDS, attention, check_backend

__all__ = ["BACKENDS", "attention", "check_backend"]


class _CallablePackage(ModuleType):
    """The package and the function share the name ``jetzoo.attention``."""

    __call__ = staticmethod(attention)


sys.modules[__name__].__class__ = _CallablePackage
