"""One attention function for all layers; every backend is checked against `reference`.

``jetzoo.attention`` is this package; called, it is its function :func:`attention`. Nothing is
imported before it is used, so that the rows of :mod:`jetzoo.attention.backends` can be listed
without PyTorch.
"""

import sys
from importlib import import_module
from types import ModuleType

from .backends import BACKENDS, check_backend

__all__ = ["BACKENDS", "attention", "check_backend"]


class _CallablePackage(ModuleType):
    """The package and the function share the name ``jetzoo.attention``."""

    def __call__(self, *tensors, **options):
        return self.attention(*tensors, **options)

    def __getattr__(self, name):
        if name != "attention":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.attention = import_module(".dispatch", self.__name__).attention
        return self.attention


sys.modules[__name__].__class__ = _CallablePackage
