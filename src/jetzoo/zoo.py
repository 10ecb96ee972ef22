"""What weaver asks of a network file, and how Python users load a trained one.

Every file in ``networks/`` is a few lines over :func:`build` and :func:`model_info`.
"""

import difflib
import inspect
import pickle
import sys
import types
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import awkward as ak
import numpy as np
import torch
import yaml
from torch import nn
from weaver.utils.data.eval_utils import _get_data_var_names
from weaver.utils.data.preprocess import _build_new_variables
from weaver.utils.dataset import SimpleIterDataset, _finalize_inputs

from jetzoo import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

# weaver hands the first three to `get_model` and `get_loss` on its own; networks may ignore them.
# The last ones are for `get_evaluate_fn`.
WEAVER_OPTIONS = ("use_amp", "compile_model", "for_inference", "fast", "quantize")


def build(network, data_config, seed=None, **options):
    """Construct a network for a weaver data config.

    Parameters
    ----------
    network : type
        Class with the constructor ``(input_dim, num_classes, *, for_inference=False, ...)``.
    data_config : weaver.utils.data.config.DataConfig
        Gives the number of input features and of classes.
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
        If an option is not an argument of the constructor.
    """
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
    if seed is not None:
        torch.manual_seed(seed)  # weaver's loader draws the seeds of its processes from it
        np.random.seed(seed)  # noqa: NPY002 - what weaver shuffles with in the main process
    model = network(
        input_dim=len(data_config.input_dicts["pf_features"]),
        num_classes=len(data_config.label_value),
        **{name: value for name, value in options.items() if name in accepted},
    )
    return model, model_info(data_config)


def constructor_options(network):
    """Names of the options of a network, those it hands on to its base classes included."""
    names = []
    for cls in network.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    fixed = getattr(network, "fixed_options", ())
    return [name for name in dict.fromkeys(names) if name not in fixed]


def _register(network):
    """Let torch.compile find the globals of a network file by the name of its module.

    weaver executes the file without putting it in ``sys.modules``.
    """
    for function in filter(inspect.isfunction, vars(network).values()):
        module = types.ModuleType(network.__module__)
        vars(module).update(function.__globals__)
        sys.modules[network.__module__] = module
        return


def model_info(data_config):
    """Names, shapes and dynamic axes of inputs and outputs, for weaver's FLOPs count and export.

    Batch (``N``) and number of particles (``n_pf``) are dynamic.
    """
    names = list(data_config.input_names)
    return {
        "input_names": names,
        "input_shapes": {name: (1, *data_config.input_shapes[name][1:]) for name in names},
        "output_names": ["softmax"],
        "dynamic_axes": {
            **{name: {0: "N", 2: "n_" + name.split("_")[0]} for name in names},
            "softmax": {0: "N"},
        },
    }


def keep_inputs(out, *unused):
    """Make an exported graph keep inputs that a network does not look at.

    The ONNX exporter drops them, but weaver's ``--predict`` feeds every input to the ONNX file.

    Parameters
    ----------
    out : Tensor, (B, num_classes)
    *unused : Tensor, (B, ...)

    Returns
    -------
    Tensor, (B, num_classes)
        ``out``; when traced, its value depends on the length of ``unused`` alone.
    """
    if torch.jit.is_tracing():
        for x in unused:
            out = out[: x.shape[0]]
    return out


def loss(data_config, **options):
    """Cross entropy on logits, the loss of all classifiers of the zoo."""
    return nn.CrossEntropyLoss()


def get_train_fn(data_config, **options):
    """weaver's own training loop; weaver asks for both loops or for none."""
    from weaver.utils.nn.tools import train_classification

    return train_classification


def get_evaluate_fn(data_config, fast=False, quantize=None, use_amp=False, **options):
    """weaver's own evaluation loop; with ``fast`` its ``--predict`` runs the fast engine.

    Parameters
    ----------
    data_config : weaver.utils.data.config.DataConfig
    fast : bool
        ``--network-option fast True``. The validation during training is not changed by it.
    quantize : dict, optional
        Compare the network with its int8 form on the test jets, see
        :func:`jetzoo.comparison.weaver_loop`; ``--quantize`` of the training scripts sets it.
    use_amp : bool
        On a GPU, matrix products in bfloat16.
    **options
        Other options of the network.
    """
    from weaver.utils.nn.tools import evaluate_classification, unwrap_model

    from jetzoo.inference import accelerate

    if quantize:
        from jetzoo.comparison import weaver_loop

        kept = {key: value for key, value in options.items() if key not in WEAVER_OPTIONS}
        return weaver_loop(evaluate_classification, quantize, kept)
    if not fast:
        return evaluate_classification

    def evaluate(model, test_loader, dev, epoch, for_training=True, **arguments):
        if not for_training:
            half = use_amp and torch.device(dev).type == "cuda"
            model = accelerate(unwrap_model(model), "bf16" if half else "fp32", dev)
        return evaluate_classification(
            model, test_loader, dev, epoch, for_training=for_training, **arguments
        )

    return evaluate


def clean_inputs(points, features, lorentz_vectors, mask):
    """Set everything that stands in the padding to zero, whatever it is (NaN and inf included).

    Parameters
    ----------
    points : Tensor, (B, 2, N)
    features : Tensor, (B, C, N)
    lorentz_vectors : Tensor, (B, 4, N)
    mask : Tensor, (B, 1, N)
        Non-zero for real particles.

    Returns
    -------
    points, features, lorentz_vectors : Tensor
        Same shapes, zero where ``mask`` is.
    mask : Tensor of bool, (B, 1, N)
    """
    mask = mask.bool()
    zero = torch.zeros((), dtype=features.dtype, device=features.device)
    return (
        torch.where(mask, points, zero),
        torch.where(mask, features, zero),
        torch.where(mask, lorentz_vectors, zero),
        mask,
    )


def network_module(name_or_path):
    """Import a network file, anew at each call, as weaver does.

    Parameters
    ----------
    name_or_path : str or Path
        Path of a ``.py`` file, or the name of one in the repository's ``networks/``.

    Returns
    -------
    module
        With ``get_model`` and ``get_loss``.

    Raises
    ------
    UserError
        If there is no such file; the message lists the names.
    """
    path = _resolve(name_or_path, "networks", ".py", "network")
    spec = spec_from_file_location(f"jetzoo_network_{path.stem}", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_data_config(name_or_path):
    """Read a data config as weaver does for prediction, auto-standardisation file included.

    Parameters
    ----------
    name_or_path : str or Path
        Path of a ``.yaml`` file, or the name of one in the repository's ``data/``, such as
        ``QuarkGluon/qg_kin``.

    Returns
    -------
    weaver.utils.data.config.DataConfig

    Raises
    ------
    UserError
        If there is no such file, or it is not the data config of a classification.
    """
    path = _resolve(name_or_path, "data", ".yaml", "data config")
    try:
        config = SimpleIterDataset({}, str(path), for_training=False).config
    except (yaml.YAMLError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is not a data config of weaver: {error!r}.") from error
    if config.label_type != "simple":
        raise UserError(f"{path} has labels of type {config.label_type!r} instead of 'simple'.")
    return config


def _resolve(name_or_path, folder, suffix, kind):
    path = Path(name_or_path)
    if path.is_file():
        return path
    folder = REPOSITORY / folder
    known = {
        str(file.relative_to(folder).with_suffix("")): file
        for file in sorted(folder.rglob(f"*{suffix}"))
        if not file.name.endswith(".auto.yaml")
    }
    name = str(name_or_path).removesuffix(suffix)
    if name not in known:
        names = ", ".join(known) or "none"
        raise UserError(f"There is no {kind} {str(name_or_path)!r}; {folder.name}/ has: {names}.")
    return known[name]


def load(network, checkpoint=None, data_config=None, device=None, fast=False, **options):
    """Load a trained network, for tagging jets in Python.

    Parameters
    ----------
    network : str or Path
        Name of a file in ``networks/``, or a path; see :func:`network_module`. Alone, without
        checkpoint and data config: the name of a model in ``models/``, see ``jetzoo models``, or
        the path of an int8 network (``.pt``), see :func:`jetzoo.quantization.save`.
    checkpoint : str or Path
        State dict that weaver wrote, such as ``net_best_epoch_state.pt``, or an int8 network.
    data_config : str or Path
        The YAML that the network was trained with; see :func:`read_data_config`.
    device : str or torch.device, optional
        By default the GPU if there is one.
    fast : bool
        Run :func:`jetzoo.accelerate` of the network: the same scores in less time and memory.
    **options
        The ``--network-option`` pairs of the training.

    Returns
    -------
    Tagger

    Raises
    ------
    UserError
        If a file is absent or damaged, an option is unknown, or the checkpoint does not fit.

    Examples
    --------
    >>> tagger = jetzoo.load("ParT", "net_best_epoch_state.pt", "QuarkGluon/qg_kin")
    >>> tagger.predict(ak.from_parquet("test.parquet"))  # (num_jets, 2)
    >>> tagger = jetzoo.load("ParT_QuarkGluon_kin", fast=True)
    """
    if checkpoint is None and data_config is None:
        if Path(network).suffix == ".pt":
            from jetzoo import quantization

            return quantization.load(network, device)
        from jetzoo import models

        network, checkpoint, data_config = models.find(str(network))
    elif checkpoint is None or data_config is None:
        raise UserError("A checkpoint and its data config go together.")
    state = read_checkpoint(checkpoint)
    if "format" in state:
        from jetzoo import quantization

        return quantization.load(checkpoint, device, network, data_config, **options)
    tagger = untrained(network, data_config, device, **options)
    _load_weights(tagger.model, state, checkpoint, network)
    if fast:
        from jetzoo.inference import accelerate

        tagger.model = accelerate(tagger.model)
    return tagger


def untrained(network, data_config, device=None, **options):
    """A network of random weights, as a tagger; arguments and errors are those of :func:`load`."""
    if "for_inference" in options:
        raise UserError("for_inference is for export; a Tagger turns logits into scores itself.")
    config = read_data_config(data_config)
    try:
        model, _ = network_module(network).get_model(config, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return Tagger(model, config, device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"The device {device!r} cannot be used: {reason}") from error


def read_checkpoint(path):
    """The dict in a file of weights, or a :class:`jetzoo.UserError`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no checkpoint {path}.") from error
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read.") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a state dict.")
    return state


def _load_weights(model, state, checkpoint, network):
    if not all(map(torch.is_tensor, state.values())):
        raise UserError(f"{checkpoint} is not a state dict.")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
        problems = [
            f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if keys[3:] else "")
            for what, keys in (("lacks", missing), ("has in addition", unexpected))
            if keys
        ]
    except RuntimeError as error:  # tensors of other shapes; the first line is a heading
        problems = [str(error).split("\n")[1].strip().rstrip(".")]
    if problems:
        raise UserError(f"{checkpoint} does not fit {network}: it {'; it '.join(problems)}.")


class Tagger:
    """A trained network with the preprocessing of its data config.

    Parameters
    ----------
    model : torch.nn.Module
        Called as weaver calls it, returns logits. Put in eval mode.
    data_config : weaver.utils.data.config.DataConfig
    device : str or torch.device

    Attributes
    ----------
    model, data_config, device
    classes : list of str
        Names of the columns of the scores.
    branches : set of str
        What jets must have.
    """

    def __init__(self, model, data_config, device="cpu"):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.data_config = data_config
        self.classes = list(data_config.label_value)
        names = [name for group in data_config.input_dicts.values() for name in group]
        self.branches, self._new_variables = _dependencies(data_config, names)
        # weaver looks up labels and observers with the inputs; jets to tag have none.
        self._inputs_config = data_config.copy()
        self._inputs_config.label_names = self._inputs_config.z_variables = ()

    def inputs(self, jets):
        """Build the inputs of the network with weaver's own preprocessing.

        Parameters
        ----------
        jets : ak.Array of records, (num_jets,)
            With the raw branches of the data config (``part_px``, ...); left as they are. The
            selection of the data config is not applied.

        Returns
        -------
        dict of ndarray, float32, (num_jets, num_variables, length)
            One entry per input group: ``pf_points``, ``pf_features``, ``pf_vectors``, ``pf_mask``.
            Particles beyond ``length`` are dropped.

        Raises
        ------
        UserError
            If branches are missing; the message names them.
        """
        missing = sorted(self.branches - set(jets.fields))
        if missing:
            raise UserError(f"The jets have no branch {', '.join(missing)}.")
        # weaver mistakes the memory layout of a slice of a larger array: hand it a packed copy.
        table = ak.to_packed(jets[sorted(self.branches)])
        table = _finalize_inputs(
            _build_new_variables(table, self._new_variables), self._inputs_config
        )
        return {name: table[f"_{name}"] for name in self.data_config.input_names}

    @torch.inference_mode()
    def predict(self, jets, batch_size=512, progress=None):
        """Tag jets.

        Parameters
        ----------
        jets : ak.Array of records, (num_jets,)
            As for :meth:`inputs`.
        batch_size : int
        progress : tqdm.tqdm, optional
            Bar to advance, in jets.

        Returns
        -------
        ndarray, float32, (num_jets, num_classes)
            Probabilities, in the order of ``classes``.
        """
        scores = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(jets), batch_size):
            inputs = self.inputs(jets[start : start + batch_size])
            logits = self.model(*(torch.from_numpy(x).to(self.device) for x in inputs.values()))
            scores.append(logits.float().softmax(dim=1).numpy(force=True))
            if progress is not None:
                progress.update(len(scores[-1]))
        return np.concatenate(scores)

    __call__ = predict


def _dependencies(data_config, names):
    """Raw branches (set) and new variables (dict, in order) that `names` are made of."""
    needed, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += _get_data_var_names(data_config.var_funcs.get(name, "0"))
    new = {name: expr for name, expr in data_config.var_funcs.items() if name in needed}
    return needed - new.keys(), new


def predict_files(tagger, files, output, batch_size=512):
    """Tag the jets of files and write the scores as weaver does.

    Truth labels, and those observers of the data config that all files have, are written too.

    Parameters
    ----------
    tagger : Tagger
    files : sequence of str or Path
        ROOT or parquet files with the branches of the data config.
    output : str or Path
        ``.root`` or ``.parquet``; appears when complete.
    batch_size : int

    Returns
    -------
    has_labels : bool
        False if the files lack the branches of the labels, so that only scores were written.

    Raises
    ------
    UserError
        If a file cannot be read or misses branches, before anything is computed.
    """
    from tqdm import tqdm

    from jetzoo import evaluate, tables

    output = tables.check_format(output)
    config = tagger.data_config
    total, common = 0, None
    for path in files:
        branches, entries = tables.describe(path, config.treename)
        missing = sorted(tagger.branches - set(branches))
        if missing:
            raise UserError(f"{path} has no branch {', '.join(missing)}.")
        total += entries
        common = set(branches) if common is None else common & set(branches)
    if total == 0:
        raise UserError("There are no jets to tag in the files.")
    tables.writable_folder(output.parent)

    (label,) = config.label_names
    extra = [
        name
        for name in (label, *config.observer_names)
        if _dependencies(config, [name])[0] <= common
    ]
    branches, new_variables = _dependencies(config, extra)
    scores, columns = [], {name: [] for name in extra}
    with tqdm(total=total, unit="jet", desc="predict") as progress:
        for path in files:
            jets = tables.read(path, tagger.branches | branches, config.treename)
            scores.append(tagger.predict(jets, batch_size, progress))
            jets = _build_new_variables(jets[sorted(branches)], new_variables) if extra else jets
            for name in extra:
                columns[name].append(jets[name])
    columns = {name: ak.concatenate(chunks) for name, chunks in columns.items()}
    labels = columns.pop(label, None)
    if labels is not None:
        labels = labels.to_numpy()
    evaluate.write_predictions(output, tagger.classes, np.concatenate(scores), labels, columns)
    return labels is not None
