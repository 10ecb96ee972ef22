"""What weaver asks of a network file: the network, its inputs and outputs, loss and loops.

Every file in ``networks/`` ends in a few lines over :func:`build` and :func:`model_info`.
"""

import difflib
import glob
import inspect
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn
from weaver.utils.nn.tools import evaluate_classification, unwrap_model

from jetzoo import UserError, groups, labels

from .acceleration import accelerate
from .comparison import Comparison, calibration_jets, check_can_compare, show
from .nn.inputs import Arrangement, arrange
from .repository import reason
from .tagger import Tagger
from .training import TrainingLoop
from .training.evaluation import evaluation
from .training.program import explain, trains, weaver_arguments, weaver_program
from .training.regression import regression_loss

STAND_IN = "__jetzoo_stand_in__"

# weaver hands the first three to `get_model` and `get_loss` on its own; networks may ignore them.
# The others are for `get_evaluate_fn` and `get_loss`.
WEAVER_OPTIONS = ("use_amp", "compile_model", "for_inference", "fast", "quantize", "loss")


def build(network, data_config, seed=None, **options):
    """Construct a network for a weaver data config.

    Parameters
    ----------
    network : type
        Class with the constructor ``(input_dim, num_classes, *, for_inference=False, ...)``, called
        as ``(points, features, lorentz_vectors, mask)``. Its attribute ``unused_inputs`` names
        those that it does not look at, ``of_collections`` the class that is built in its place for
        several collections, with a dict of their numbers of features as ``input_dim``.
    data_config : weaver.utils.data.config.DataConfig
        Gives the number of input features, and of classes or of targets of a regression. Its groups
        are found by name, see :mod:`jetzoo.groups`; where they come in another order than the
        network has them, it takes them in that of the data config, as weaver hands them over.
    seed : int, optional
        ``--network-option seed 1``: of the initial weights and of everything random that weaver
        does afterwards (order of the jets, dropout). PyTorch's default is a fixed seed, too.
    **options
        Keyword arguments of the constructor, as weaver's ``--network-option`` passes them.

    Returns
    -------
    model : torch.nn.Module
    info : dict
        See :func:`model_info`.

    Raises
    ------
    ValueError
        If an option is not an argument of the constructor. Where weaver is the running program,
        every error of the options is a :class:`jetzoo.UserError`, which ends it with one sentence.
    UserError
        If the network cannot take what the data config has, or weaver cannot train it.
    """
    in_weaver = weaver_program() is not None
    if in_weaver:
        sys.excepthook = explain
    try:
        model = _construct(network, data_config, seed, options)
    except UserError as error:
        source = getattr(data_config, "source", None)
        if in_weaver:
            source = weaver_arguments().data_config
        raise UserError(f"{source}: {error}" if source else str(error)) from error
    except Exception as error:
        if not in_weaver:
            raise
        raise UserError(f"{network.__name__} cannot be built: {reason(error)}.") from error
    return model, model_info(data_config)


def _construct(network, data_config, seed, options):
    labels.check(data_config)
    if weaver_program() is not None:
        check_mode(data_config, weaver_arguments())
    found = groups.collections(data_config)
    if len(found) > 1:
        network = getattr(network, "of_collections", network)
    several = hasattr(network, "several_collections")
    places = groups.order(
        data_config, network.__name__, getattr(network, "unused_inputs", ()), several
    )
    accepted = constructor_options(network)
    for name in options:
        if name not in accepted and name not in WEAVER_OPTIONS:
            close = difflib.get_close_matches(name, accepted, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"{network.__name__} has no option {name!r}; {hint}"
                f"its options are: {', '.join(sorted([*accepted, 'seed']))}"
            )
    _register(network)
    set_seed(seed)
    dims = {x: len(data_config.input_dicts[found[x]["features"]]) for x in found}
    model = network(
        dims if several else next(iter(dims.values())),
        len(labels.outputs(data_config)),
        **{name: value for name, value in options.items() if name in accepted},
    )
    if labels.is_regression(data_config):
        for module in model.modules():
            if hasattr(module, "gives_classes"):
                module.gives_classes = False
    names = data_config.input_names
    if [place for _, place in places] != list(range(len(names))):
        arrange(model, Arrangement(places, names))
    return model


def check_mode(data_config, args):
    """Raise a :class:`jetzoo.UserError` unless weaver trains what the labels are of.

    Parameters
    ----------
    data_config : weaver.utils.data.config.DataConfig
    args : argparse.Namespace
        Of weaver.
    """
    is_regression = labels.is_regression(data_config)
    if args.regression_mode and not is_regression:
        raise UserError(
            "The labels are classes: --regression-mode takes labels of type custom without names."
        )
    if trains(args) and is_regression and not args.regression_mode:
        raise UserError(
            "The labels are targets of a regression, which is trained with --regression-mode; for "
            "the index of a class, add names: [...] of the classes to the labels."
        )


def set_seed(seed):
    """Fix everything random that weaver does from here on, unless the seed is None."""
    if seed is not None:
        torch.manual_seed(seed)  # weaver's loader draws the seeds of its processes from it
        np.random.seed(seed)  # noqa: NPY002 - what weaver shuffles with in the main process


def constructor_options(network):
    """Names of the options of a network, those it hands on to others included.

    These are its base classes, and the class that its attribute ``hands_options_to`` names.
    """
    names = []
    for cls in network.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    if hasattr(network, "hands_options_to"):
        names += constructor_options(network.hands_options_to)
    fixed = getattr(network, "fixed_options", ())
    return [name for name in dict.fromkeys(names) if name not in fixed]


def _register(network):
    """Let torch.compile and pickle find a network file by the name of its module.

    weaver executes the file without putting it in ``sys.modules``. A module that is there, such as
    the ``__main__`` of a user, is never replaced, but for one of an earlier load of such a file.
    """
    name = network.__module__
    known = sys.modules.get(name)
    if known is not None and not hasattr(known, STAND_IN):
        return
    module = types.ModuleType(name)
    for function in filter(inspect.isfunction, vars(network).values()):
        if function.__globals__.get("__name__") == name:
            vars(module).update(function.__globals__)
    setattr(module, network.__name__, network)
    setattr(module, STAND_IN, True)
    sys.modules[name] = module


def model_info(data_config):
    """Names, shapes and dynamic axes of inputs and outputs, for weaver's FLOPs count and export.

    Batch (``N``) and numbers of particles (``n_pf``, and so on for other collections) are dynamic.
    """
    shapes = groups.shapes(data_config)
    axes = {
        name: {0: "N", 2: f"n_{groups.kind(name)[0]}"} if len(shape) == 3 else {0: "N"}
        for name, shape in shapes.items()
    }
    output = "output" if labels.is_regression(data_config) else "softmax"
    return {
        "input_names": list(data_config.input_names),
        "input_shapes": shapes,
        "output_names": [output],
        "dynamic_axes": {**axes, output: {0: "N"}},
    }


def get_loss(data_config, loss=None, **options):
    """Cross entropy on logits, or the loss of a regression.

    Parameters
    ----------
    data_config : weaver.utils.data.config.DataConfig or None
        None for classes, whose loss does not depend on it.
    loss : {"log-cosh", "mse", "huber"}, optional
        Of a regression, by default log-cosh; see :mod:`jetzoo.training.regression`.
    **options
        Other options of the network.

    Raises
    ------
    UserError
        If there is no such loss, the labels are classes, whose loss is the cross entropy, or the
        network has a second output.
    """
    if options.get("embedding"):
        raise UserError("weaver takes one output: an embedding is for jetzoo predict --embedding.")
    if data_config is not None and labels.is_regression(data_config):
        return regression_loss(loss or "log-cosh")
    if loss is not None:
        raise UserError(f"The loss {loss!r} is for a regression; that of classes is cross entropy.")
    return nn.CrossEntropyLoss()


def get_train_fn(data_config, **options):
    """weaver's own training loop, with what it lacks; weaver asks for both loops or for none."""
    return TrainingLoop(labels.is_regression(data_config))


def get_evaluate_fn(data_config, fast=False, quantize=None, use_amp=False, **options):
    """weaver's own evaluation loop; with ``fast`` its ``--predict`` runs the fast engine.

    Parameters
    ----------
    data_config : weaver.utils.data.config.DataConfig
    fast : bool
        ``--network-option fast True``. The validation during training is not changed by it.
    quantize : dict, optional
        Compare the network with its int8 form on the test jets, see
        :class:`jetzoo.comparison.Comparison`; ``--quantize`` of the training scripts sets it.
    use_amp : bool
        On a GPU, matrix products in bfloat16.
    **options
        Other options of the network.
    """
    evaluate_jets = evaluation(data_config)
    if quantize:
        check_can_compare(data_config)
        kept = {key: value for key, value in options.items() if key not in WEAVER_OPTIONS}
        return ComparingLoop(quantize, kept)

    def evaluate(model, test_loader, dev, epoch, for_training=True, **arguments):
        if for_training:
            return validate(model, test_loader, dev, epoch, **arguments)
        if fast:
            half = use_amp and torch.device(dev).type == "cuda"
            model = accelerate(unwrap_model(model), "bf16" if half else "fp32", dev)
        return evaluate_jets(model, test_loader, dev, epoch, for_training=False, **arguments)

    return evaluate


def validate(model, val_loader, dev, epoch, **arguments):
    """Validate an epoch, by the loop that trained it if it is that of :func:`get_train_fn`."""
    weaver = arguments["extra_args"]
    loop = weaver.get("train")
    if isinstance(loop, TrainingLoop) and "train" in weaver["args"].run_mode:
        return loop.validate(model, val_loader, dev, epoch, **arguments)
    return evaluation(val_loader.dataset.config)(model, val_loader, dev, epoch, **arguments)


class ComparingLoop:
    """weaver's evaluation loop, which compares float32 and int8 when it predicts the test jets.

    Parameters
    ----------
    settings : dict
        ``method``, ``network``, ``calibration`` (patterns of files), ``output`` (folder), ``qat``.
    options : dict
        Of the network.
    """

    def __init__(self, settings, options):
        self.settings = settings
        self.options = options
        self.comparison = None

    def __call__(self, model, test_loader, dev, epoch, for_training=True, **arguments):
        """Evaluate as weaver does; a misuse ends the process with one sentence and code 2."""
        if for_training:
            return validate(model, test_loader, dev, epoch, **arguments)
        try:
            return self.compare(model, test_loader, epoch, **arguments)
        except UserError as error:
            print(f"jetzoo: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    def compare(self, model, test_loader, epoch, **arguments):
        """Predict with both forms on the CPU, wherever the network was trained."""
        config = test_loader.dataset.config
        if self.comparison is None:
            self.comparison = self.start(unwrap_model(model), config)
        result = evaluate_classification(
            self.comparison.both, test_loader, "cpu", epoch, for_training=False, **arguments
        )
        _, scores, labels, _ = result
        self.comparison.add(labels[config.label_names[0]], scores)
        groups = arguments.get("extra_args", {})
        # weaver predicts one group of files after the other: those of JetClass are the classes.
        if groups.get("name") == list(groups.get("test_loaders", {None: None}))[-1]:
            show(self.comparison)
        return result

    def start(self, model, config):
        """Quantize the network on the jets that the settings name."""
        settings = self.settings
        files = [f for x in settings["calibration"] for f in sorted(glob.glob(x))]
        jets = calibration_jets(Tagger(model, config), files, many=settings["qat"])
        return Comparison(
            model,
            config,
            jets,
            Path(settings["output"]) / "net_int8.pt",
            settings["network"],
            self.options,
            settings["method"],
            settings["qat"],
        )
