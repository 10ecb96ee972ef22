"""Pythia, set up with a list of settings."""

import pythia8mc

NEUTRINOS = (12, 14, 16)


def new_pythia(settings, seed, hooks=None):
    """Set up Pythia.

    Parameters
    ----------
    settings : iterable of str
        Lines of Pythia's commands, such as ``Beams:eCM = 14000.``.
    seed : int
        From 1 to 900,000,000.
    hooks : pythia8mc.UserHooks, optional
        Vetoes; the caller keeps a reference to them.

    Returns
    -------
    pythia8mc.Pythia

    Raises
    ------
    ValueError
        Pythia does not know a setting, or cannot start with all of them.
    """
    pythia = pythia8mc.Pythia("", False)
    common = ("Print:quiet = on", "Random:setSeed = on", f"Random:seed = {seed}")
    for setting in (*common, *settings):
        if not pythia.readString(setting):
            raise ValueError(f"Pythia does not know {setting}")
    if hooks is not None:
        pythia.setUserHooksPtr(hooks)
    if not pythia.init():
        raise ValueError("Pythia does not start with these settings")
    return pythia
