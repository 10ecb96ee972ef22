"""The network files of the project as modules, such as ``jetzoo.networks.ParT``.

The files stand in ``networks/`` of the checkout, or of ``share/`` in a wheel.
"""

from jetzoo.repository import home

__path__.append(str(home() / "networks"))
