"""Whether a module computes what its class says, so that a fused or folded form may stand for it.

Fused kernels and the fast engine compute what several modules compute one after the other. They
may do so only while every one of these modules is what it seems to be: a subclass that overrides a
method, a method that was replaced on the instance, and a hook all change the result.
"""

import functools
import inspect

import torch
from torch import nn

# What a class may define without changing what it computes in a forward pass.
HARMLESS = frozenset(
    {
        "__init__",
        "__repr__",
        "__getstate__",
        "__setstate__",
        "__reduce__",
        "_load_from_state_dict",
        "extra_repr",
        "load_state_dict",
        "reset_parameters",
    }
)
# Settings with which a class computes what a fused form computes.
USUAL = {
    nn.GELU: lambda module: module.approximate == "none",
    nn.LayerNorm: lambda module: module.weight is not None and module.bias is not None,
    nn.BatchNorm1d: lambda module: module.affine and module.running_mean is not None,
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def only_looks(hook):
    """Mark a hook that changes nothing, so that it does not keep a module from its fused form.

    Parameters
    ----------
    hook : callable
        A forward hook that measures, and needs no output of a module within a fused form.

    Returns
    -------
    callable
        The hook.
    """
    hook.only_looks = True
    return hook


def unmodified(module, cls):
    """Whether a module computes exactly what instances of a class compute.

    Parameters
    ----------
    module : nn.Module
    cls : type
        A subclass of ``nn.Module``.

    Returns
    -------
    bool
        True for an instance of the class, or of a subclass that overrides no method, if no method
        is replaced on the instance and no hook is registered. GELU must be the exact form, norms
        need gain and shift.
    """
    return (
        _computes_as(type(module), cls)
        and (cls not in USUAL or USUAL[cls](module))
        and _methods(cls).isdisjoint(vars(module))
        and all(
            hasattr(hook, "only_looks")
            for hooks in HOOKS
            for hook in getattr(module, hooks).values()
        )
    )


def fusible(parts):
    """Whether a fused form may stand for modules; never while a graph is compiled.

    Parameters
    ----------
    parts : iterable of (nn.Module, type)
        The modules, each with the class whose computation the fused form contains.
    """
    return not torch.compiler.is_compiling() and all(unmodified(m, kind) for m, kind in parts)


@functools.cache
def _methods(cls):
    """Names of the methods and properties that a class and its bases above ``nn.Module`` define."""
    return frozenset(
        name
        for base in cls.__mro__[: cls.__mro__.index(nn.Module)]
        for name, value in vars(base).items()
        if name not in HARMLESS
        and (inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod)))
    ) | {"forward"}


@functools.cache
def _computes_as(found, cls):
    return found is cls or (
        issubclass(found, cls)
        and found.__call__ is cls.__call__
        and all(
            inspect.getattr_static(found, name) is inspect.getattr_static(cls, name)
            for name in _methods(cls)
        )
    )
