"""Fast, explainable Particle Transformers: a model zoo for weaver."""

from importlib import import_module

__version__ = "0.2.0"


class UserError(Exception):
    """A misuse that one sentence explains; the command line prints it and exits with code 2."""


# Loaded on first use, so that `import jetzoo` and `jetzoo -h` do not wait for torch.
_EXPORTS = {
    "accelerate": "jetzoo.acceleration",
    "attention": "jetzoo.attention",
    "load": "jetzoo.tagger",
    "predict_files": "jetzoo.prediction.files",
}


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
