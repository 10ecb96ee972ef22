"""A network file of a user for weaver, with the loss and the loops of jetzoo where it has none.

The training scripts hand this file to weaver in place of one that does not lie in ``networks/``.
Such a file may know nothing of jetzoo: it needs ``get_model``, as weaver has it. With the loops
come ``--seed``, ``--quantize``, a ``--resume`` that goes on as if nothing had happened (as far as a
network keeps its state in its buffers), and a stop at a loss that is not finite.
"""

import ast
import functools
import sys

from jetzoo import UserError, plugin, repository
from jetzoo.training.program import explain

# What weaver itself adds to the options, which network files expect.
FROM_WEAVER = ("use_amp", "compile_model", "for_inference")

module_of = functools.cache(repository.network_module)


def get_model(data_config, *, network_file, seed=None, **options):
    """Build the network of the file; `seed` is that of :func:`jetzoo.plugin.build`."""
    sys.excepthook = explain
    plugin.set_seed(seed)
    options = {
        name: value
        for name, value in options.items()
        if name not in plugin.WEAVER_OPTIONS or name in FROM_WEAVER
    }
    return repository.build(module_of(network_file), data_config, **options)


def get_loss(data_config, *, network_file, seed=None, **options):
    """Return the loss of the file, or that of the zoo."""
    get = getattr(module_of(network_file), "get_loss", plugin.get_loss)
    return get(data_config, **options)


def get_train_fn(data_config, *, network_file, seed=None, **options):
    """Return the training loop of the file if it has both loops, or that of the zoo."""
    return loops(network_file)[0](data_config, **options)


def get_evaluate_fn(data_config, *, network_file, seed=None, **options):
    """Return the evaluation loop of the file if it has both loops, or that of the zoo."""
    get = loops(network_file)[1]
    if options.get("quantize") and get is not plugin.get_evaluate_fn:
        raise UserError(f"--quantize is for the loops of jetzoo, and {network_file} has others.")
    return get(data_config, **options)


def init_opt(args, model, **options):
    """Return the optimizer of the file, or that of weaver."""
    # weaver is needed for training only.
    from weaver.train import init_opt

    network_file = ast.literal_eval(dict(args.network_option)["network_file"])
    return getattr(module_of(network_file), "init_opt", init_opt)(args, model, **options)


def loops(network_file):
    """`get_train_fn` and `get_evaluate_fn` of the file, or those of the zoo; weaver mixes none."""
    module = plugin
    if repository.has_own_loops(network_file):
        module = module_of(network_file)
    return module.get_train_fn, module.get_evaluate_fn
