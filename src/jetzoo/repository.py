"""Where networks, data configs, trained weights and embedded jets lie.

In a checkout they are its folders ``networks/``, ``data/`` and ``models/``; a wheel carries the
same folders in ``share/`` of the package. Folders of the environment variable ``JETZOO_PATH``, each
with a ``networks/`` or a ``data/`` of a user, come first. What is downloaded goes to the user's
cache folder, never beside an installed package.
"""

import hashlib
import importlib
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from jetzoo import UserError

PACKAGE = Path(__file__).resolve().parent


def checkout():
    """Return the folder of the checkout, or None where jetzoo is installed from a wheel."""
    root = PACKAGE.parents[1]
    return root if (root / "pyproject.toml").is_file() and (root / "networks").is_dir() else None


def folders(name):
    """List the existing folders of a name, the user's own before those of the project.

    Parameters
    ----------
    name : {"networks", "data", "models"}

    Returns
    -------
    list of Path
    """
    given = [Path(x).expanduser() for x in os.environ.get("JETZOO_PATH", "").split(os.pathsep) if x]
    return [found for root in (*given, home()) if (found := root / name).is_dir()]


def home():
    """Return the folder that holds ``networks/``, ``data/`` and ``models/`` of the project."""
    return checkout() or PACKAGE / "share"


def cache():
    """Return the user's cache folder, ``$XDG_CACHE_HOME/jetzoo`` or ``~/.cache/jetzoo``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetzoo"


def samples(dataset):
    """Return the folder of the embedded jets of a data set, such as ``QuarkGluon``."""
    return home() / "data" / "samples" / dataset


def sample_jets():
    """Return the file of the embedded jets that commands take where no other is given."""
    return samples("QuarkGluon") / "test_file_0.parquet"


def models():
    """Return the folder of the trained weights and their cards."""
    return home() / "models"


def published_models():
    """Return the folder of fetched weights: ``models/published`` in a checkout, else the cache."""
    root = checkout()
    return root / "models" / "published" if root else cache() / "models"


def networks():
    """List the network files by name.

    Returns
    -------
    dict of str to Path
    """
    return _files("networks", ".py")


def data_configs():
    """List the data configs by name, such as ``QuarkGluon/qg_kin``.

    Returns
    -------
    dict of str to Path
    """
    return _files("data", ".yaml")


def _files(folder, suffix):
    found = {}
    for root in folders(folder):
        for path in sorted(root.rglob(f"*{suffix}")):
            if not path.name.startswith("_") and not path.name.endswith(".auto.yaml"):
                name = path.relative_to(root).with_suffix("").as_posix()
                found.setdefault(name, path)
    return found


def network(name_or_path):
    """Find a network file by name or path; :class:`jetzoo.UserError` lists the names."""
    return _find(name_or_path, ".py", "network", networks)


def data_config(name_or_path):
    """Find a data config by name or path; :class:`jetzoo.UserError` lists the names."""
    return _find(name_or_path, ".yaml", "data config", data_configs)


def _find(name_or_path, suffix, kind, listed):
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = listed()
    name = str(name_or_path).removesuffix(suffix)
    if name not in known:
        raise UserError(
            f"There is no {kind} {str(name_or_path)!r}; known are: {', '.join(known) or 'none'}."
        )
    return known[name]


def path(name):
    """Find what a name stands for.

    Parameters
    ----------
    name : str
        A network (``ParT``), a data config (``QuarkGluon/qg_kin``), a model (``ParT_full``,
        ``published/ParT_full``) or the embedded jets of a data set (``samples/QuarkGluon``).

    Returns
    -------
    Path

    Raises
    ------
    UserError
        If nothing has this name.
    """
    found = networks() | data_configs()
    if name in found:
        return found[name]
    published = published_models() / f"{name.removeprefix('published/')}.pt"
    for place in (models() / f"{name}.pt", published, home() / "data" / name):
        if place.exists() and ".." not in Path(name).parts:
            return place
    raise UserError(
        f"There is no network, data config or model {name!r}; jetzoo list shows the names."
    )


def network_module(name_or_path):
    """Import a network file.

    Files of the project are modules of the package :mod:`jetzoo.networks`, so that their networks
    can be pickled. A file of a user is executed anew at each call, as weaver does.

    Parameters
    ----------
    name_or_path : str or Path
        Path of a ``.py`` file, or the name of one in a folder ``networks/``.

    Returns
    -------
    module
        With ``get_model`` and ``get_loss``.

    Raises
    ------
    UserError
        If there is no such file, it cannot be imported, or it defines no ``get_model``.
    """
    path = network(name_or_path).resolve()
    try:
        if path.parent == (home() / "networks").resolve():
            module = importlib.import_module(f"jetzoo.networks.{path.stem}")
        else:
            digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
            spec = spec_from_file_location(f"jetzoo_network_{digest}_{path.stem}", path)
            module = module_from_spec(spec)
            sys.modules[module.__name__] = module
            spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the code of a user raises
        raise UserError(f"{path} cannot be imported as a network file: {reason(error)}.") from error
    if not callable(getattr(module, "get_model", None)):
        raise UserError(f"{path} is not a network file of weaver: it defines no get_model.")
    return module


def has_own_loops(name_or_path):
    """Whether a network file has loops that train and evaluate, and they are not those of jetzoo.

    Parameters
    ----------
    name_or_path : str or Path
        See :func:`network_module`.
    """
    module = network_module(name_or_path)
    loops = (getattr(module, name, None) for name in ("get_train_fn", "get_evaluate_fn"))
    return all(loop is not None and loop.__module__ != "jetzoo.plugin" for loop in loops)


def build_network(name_or_path, config, **options):
    """Construct a network, with weights as they are before a training.

    Parameters
    ----------
    name_or_path : str or Path
        See :func:`network_module`.
    config : weaver.utils.data.config.DataConfig
    **options
        The ``--network-option`` pairs.

    Returns
    -------
    model : torch.nn.Module
    info : dict
        See :func:`jetzoo.plugin.model_info`.

    Raises
    ------
    UserError
        As :func:`network_module` and :func:`build`.
    """
    return build(network_module(name_or_path), config, **options)


def build(module, config, **options):
    """Construct the network of a network file, see :func:`build_network`.

    Parameters
    ----------
    module : module
        See :func:`network_module`.
    config, **options
        As of :func:`build_network`.

    Raises
    ------
    UserError
        If the network cannot be built with these options.
    """
    try:
        model, info = module.get_model(config, **options)
        model.state_dict()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the code of a user raises
        if isinstance(error, ValueError) and any(name in str(error) for name in options):
            raise UserError(reason(error, named=False) + ".") from error
        given = ", ".join(f"{key} {value!r}" for key, value in options.items())
        raise UserError(
            f"{Path(module.__file__).stem} cannot be built"
            f"{f' with the option {given}' if given else ''}: {reason(error)}."
        ) from error
    return model, info


def reason(error, named=True):
    """The first line of what an exception says, after its type if it is to be named."""
    text = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    name = type(error).__name__
    return ": ".join(filter(None, [name if named or not text else "", text]))
