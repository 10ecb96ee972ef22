"""Rows of the attention backends, from which checks, help texts, scripts and benchmarks derive."""

from dataclasses import dataclass
from importlib import import_module

HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Backend:
    """What an attention backend can do.

    Attributes
    ----------
    function : str
        ``module:name`` of what computes it, called as :func:`jetzoo.attention` without ``backend``;
        imported when first used.
    summary : str
    bias, dropout, cpu_gradients : bool
        Whether it takes a pair bias and dropout, and has gradients on a CPU.
    timed : bool
        Whether "auto" times it on a GPU and takes it where it is the fastest.
    devices, dtypes : tuple of str
    package, install : str
        What it imports beyond PyTorch, and how that is installed.
    instead : str
        What to choose where it cannot be used.
    """

    function: str
    summary: str
    bias: bool = True
    dropout: bool = True
    cpu_gradients: bool = True
    timed: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = ("float32", "float64", *HALF)
    package: str = ""
    install: str = ""
    instead: str = "sdpa"

    def load(self):
        """Import and return the function; an ImportError if the package is missing."""
        if self.package:
            import_module(self.package)
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)


BACKENDS = {
    "reference": Backend(
        "jetzoo.attention.reference:reference", "written out; the others are checked against it"
    ),
    "sdpa": Backend("jetzoo.attention.dispatch:sdpa", "PyTorch's fused attention", timed=True),
    "jagged": Backend(
        "jetzoo.attention.jagged:jagged",
        "this project's kernel for CPUs, jet by jet",
        devices=("cpu",),
        dtypes=("float32", *HALF),
    ),
    "flex": Backend(
        "jetzoo.attention.flex:flex",
        "PyTorch's FlexAttention",
        dropout=False,
        cpu_gradients=False,
    ),
    "triton": Backend(
        "jetzoo.attention.triton_kernel:triton_attention",
        "this project's kernel for GPUs",
        timed=True,
        dtypes=("float32", *HALF),
        package="triton",
        install="pip install triton",
    ),
    "flash_attn": Backend(
        "jetzoo.attention.flash:flash_attn",
        "the flash-attn package, without pair bias",
        timed=True,
        bias=False,
        devices=("cuda",),
        dtypes=HALF,
        package="flash_attn",
        install="pip install jetzoo[gpu]",
        instead="triton",
    ),
}


def check_backend(name, bias=False):
    """Check a backend before anything is computed.

    Parameters
    ----------
    name : str
        A key of ``BACKENDS``, or "auto".
    bias : bool
        Whether there will be a pair bias.

    Raises
    ------
    ValueError
        If there is no such backend, or it takes no bias.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(
            f"unknown attention backend {name!r}; choose from auto, {', '.join(BACKENDS)}"
        )
    if bias and name != "auto" and not BACKENDS[name].bias:
        raise ValueError(
            f"the {name} backend takes no pair bias; set pair_bias=False or choose "
            f"{BACKENDS[name].instead}"
        )
