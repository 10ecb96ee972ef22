"""What the labels of a data config say: classes of jets, or targets of a regression.

- ``type: simple`` has a branch for each class.
- ``type: custom`` with ``names``, those of the classes, has one formula: the index of the class.
- ``type: custom`` alone has a formula for each target of a regression.
"""

from jetzoo import UserError


def is_regression(config):
    """Whether the labels of a data config are targets of a regression."""
    return config.label_type != "simple" and not config.labels.get("names")


def outputs(config):
    """Names of the classes, or of the targets: of what a network gives for each jet.

    Parameters
    ----------
    config : weaver.utils.data.config.DataConfig

    Returns
    -------
    list of str
    """
    if config.label_type == "simple":
        return list(config.label_value)
    return list(config.labels.get("names") or config.label_value)


def formulas(config):
    """Formulas of the labels of a data config, list of str."""
    value = config.label_value
    return list(value.values() if isinstance(value, dict) else value)


def check(config):
    """Check the labels of a data config.

    Raises
    ------
    UserError
        If they are of no type that this module describes.
    """
    value, names = config.label_value, config.labels.get("names")
    if config.label_type == "simple":
        if len(value) < 1 or not all(isinstance(x, str) for x in value):
            raise UserError("The labels of type simple are a list of names.")
    elif config.label_type != "custom":
        raise UserError(f"The labels are of type {config.label_type!r}, not simple or custom.")
    elif not all(isinstance(x, str) for item in value.items() for x in item) or not value:
        raise UserError("The labels of type custom are names with a formula each.")
    elif names is not None:
        good = isinstance(names, list) and all(isinstance(x, str) for x in names)
        if not good or len(set(names)) != len(names) or len(names) < 2:
            raise UserError("The names of the labels are a list of the classes, two or more.")
        if len(value) != 1:
            raise UserError(
                f"Labels with names of classes are one formula, the index of the class, "
                f"not {len(value)}."
            )
