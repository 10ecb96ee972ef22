"""The groups of inputs of a data config: which of them is what, told by name.

``pf_features`` are the features of the collection ``pf``; so are ``pf_fts``. weaver hands the
groups to a network in the order in which the data config has them.
"""

import re

from jetzoo import UserError

# What a network of the zoo takes of each collection, in the order of its forward pass, and the
# names that data configs have for it.
KINDS = {
    "points": ("points", "coords", "coordinates"),
    "features": ("features", "feats", "fts"),
    "lorentz_vectors": ("vectors", "lorentz_vectors", "lorentz", "momenta", "p4"),
    "mask": ("mask",),
}
_NAME = re.compile(
    "(?:(?P<collection>.+?)_)?(?:"
    + "|".join(f"(?P<{kind}>{'|'.join(names)})" for kind, names in KINDS.items())
    + ")"
)
# Variables that a group of a kind must have.
CHANNELS = {"lorentz_vectors": 4, "mask": 1}


def kind(name):
    """Collection and kind of a group; the kind of a name that says none is None.

    Parameters
    ----------
    name : str

    Returns
    -------
    collection : str
        What comes before the kind, ``pf`` of ``pf_lorentz_vectors``.
    kind : str or None
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return name.split("_")[0], None
    return found["collection"] or "", next(key for key in KINDS if found[key])


def lengths(config):
    """Padded length of each group, None for one number for each jet."""
    return {
        name: config.preprocess_params[variables[0]]["length"]
        for name, variables in config.input_dicts.items()
    }


def shapes(config, length=None):
    """Shape of one jet of each group, with the batch first, as weaver hands it over.

    Parameters
    ----------
    config : weaver.utils.data.config.DataConfig
    length : int, optional
        In place of that of the data config.

    Returns
    -------
    dict of str to tuple of int
        (1, C, length); (1, C) of numbers for each jet, and (1,) of one.
    """
    found = {}
    for name, padded in lengths(config).items():
        count = len(config.input_dicts[name])
        if padded is None:
            found[name] = (1,) if count == 1 else (1, count)
        else:
            found[name] = (1, count, length or padded)
    return found


def collections(config):
    """The groups of each collection of a data config.

    A group of one number for each jet is of no collection, and neither is one whose name says no
    kind: networks of the zoo do not look at them.

    Parameters
    ----------
    config : weaver.utils.data.config.DataConfig

    Returns
    -------
    dict of str to dict of str to str
        Names of the groups by collection and kind, in the order of the data config.

    Raises
    ------
    UserError
        If two groups of a collection are of one kind, or do not belong together.
    """
    found, padded = {}, lengths(config)
    for name in config.input_names:
        collection, what = kind(name)
        if what is None or padded[name] is None:
            continue
        groups = found.setdefault(collection, {})
        if what in groups:
            raise UserError(
                f"The groups {groups[what]} and {name} are both {_readable(what)} of one "
                "collection."
            )
        groups[what] = name
    for collection, groups in list(found.items()):
        if padded[next(iter(groups.values()))] == 1 and "mask" not in groups:
            del found[collection]  # numbers of the jet, padded to one
            continue
        first, *others = groups.values()
        for other in others:
            if padded[other] != padded[first]:
                raise UserError(
                    f"The group {first} is padded to {padded[first]}, {other} to {padded[other]}."
                )
    return found


def order(config, network, unused=(), several=False):
    """Where a network finds its inputs among those of a data config.

    Parameters
    ----------
    config : weaver.utils.data.config.DataConfig
    network : str
        For messages.
    unused : iterable of str
        Kinds that the network does not look at, which may be missing.
    several : bool
        Whether the network takes several collections: features, four-vectors and mask of each. Else
        it takes points, features, four-vectors and mask of one.

    Returns
    -------
    list of (str, int or None)
        Kind of each input in the order of the network, and its place in the data config; None where
        it is missing.

    Raises
    ------
    UserError
        If groups are missing, do not belong together, or have the wrong number of variables. The
        message names them.
    """
    found = collections(config)
    if not found:
        raise UserError(
            f"The data config has no group of features, such as pf_features, which {network} needs."
        )
    if len(found) > 1 and not several:
        raise UserError(
            f"{network} takes one collection of particles, and the data config has "
            f"{len(found)}: {', '.join(x or next(iter(found[x].values())) for x in found)}."
        )
    places = []
    for collection, groups in found.items():
        for what in KINDS:
            name = groups.get(what)
            if several and what == "points":
                continue
            if name is None and what not in unused:
                example = "_".join(filter(None, (collection, KINDS[what][0])))
                raise UserError(
                    f"The data config has no group {example}, the {_readable(what)} that {network} "
                    "needs."
                )
            if name is not None and (count := len(config.input_dicts[name])) != CHANNELS.get(
                what, count
            ):
                raise UserError(
                    f"The group {name} has {count} variables instead of {CHANNELS[what]}."
                )
            place = None if name is None else list(config.input_names).index(name)
            places.append((what, place))
    return places


def _readable(what):
    return what.replace("lorentz_vectors", "four-vectors")
