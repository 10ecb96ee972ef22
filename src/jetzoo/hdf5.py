"""HDF5 files, of which nothing that is pickled in them may run."""

import io
import pickle
from contextlib import contextmanager
from types import SimpleNamespace

import awkward as ak

# What pickles of numbers and strings name besides Python's own types.
PLAIN_GLOBALS = {
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


@contextmanager
def columns(path):
    """The arrays in the root of an open file, by name, as weaver reads them: dict of tables.Array.

    Raises
    ------
    ValueError
        If there are none, or they have different lengths.
    """
    with plain_pickles():
        import tables

        with tables.open_file(path) as file:
            found = {node._v_name: node for node in file.root if isinstance(node, tables.Array)}
            if len({len(array) for array in found.values()}) != 1:
                raise ValueError("it has no arrays of one length in its root")
            yield found


def read(arrays, start, stop):
    """Entries of some arrays of :func:`columns`: ak.Array of records, (stop - start,)."""
    return ak.Array({name: array[start:stop] for name, array in arrays.items()})


@contextmanager
def plain_pickles():
    """PyTables unpickles attributes of a file; here only what cannot run code."""
    import tables.atom
    import tables.attributeset

    modules = (tables.atom, tables.attributeset)
    plain = SimpleNamespace(**vars(pickle) | {"loads": _load_plain})
    before = [module.pickle for module in modules]
    for module in modules:
        module.pickle = plain
    try:
        yield
    finally:
        for module, original in zip(modules, before, strict=True):
            module.pickle = original


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) in PLAIN_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not a plain value")


def _load_plain(data, **options):
    return _PlainUnpickler(io.BytesIO(data), **options).load()
