"""The parquet schema of the quark/gluon and top-tagging jets, written by one function.

Downloaded, converted and simulated jets share it: `label` (1 signal, 0 background), the jet's
four-vector, and one entry per particle of momentum, energy and direction relative to the jet. Jets
with a particle id also carry the id, the charge and five class flags.
"""

from itertools import chain

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uproot

from jetzoo.tables import atomic

# Particles that live long enough to reach a detector, as the published conversion groups them; the
# rarer ones that a generator may call stable join the hadrons of their charge.
POSITIVE_HADRONS = (211, 321, 2212, 3222, -3112, -3312, -3334)
NEUTRAL_HADRONS = (130, 310, 311, 2112, 3122, 3212, 3322)


def massless_p4(pt, rapidity, phi):
    """Four-vectors of particles taken as massless.

    The published quark/gluon jets are stored as (pt, y, phi, id) and read as massless: `rapidity`
    serves as pseudorapidity, and no mass is looked up from the id.

    Parameters
    ----------
    pt, rapidity, phi : array
        Transverse momentum in GeV, rapidity, azimuth in radians; any one shape.

    Returns
    -------
    px, py, pz, energy : array
        In GeV, of the same shape.
    """
    return pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(rapidity), pt * np.cosh(rapidity)


def jets_table(px, py, pz, energy, label, pid=None):
    """Jets in the published parquet schema, from the four-vectors of their particles.

    Particles are sorted by descending transverse momentum. The jet is the sum of its particles.
    `part_deta` is the pseudorapidity difference to the jet, times the sign of the jet's, so that
    both sides of the detector look alike; `part_dphi` lies in [-pi, pi).

    Parameters
    ----------
    px, py, pz, energy : ak.Array
        Jagged arrays (jets, particles), in GeV.
    label : array (jets,)
        1 for a quark or top jet, 0 for a gluon or QCD jet.
    pid : ak.Array, optional
        PDG ids (jets, particles).

    Returns
    -------
    ak.Array
        One record per jet: `label`, `jet_nparticles` int64; `part_pid` int32; all else float32.

    References
    ----------
    Qu, Li, Qian, "Particle Transformer for Jet Tagging", arXiv:2202.03772, appendix on the inputs.
    """
    order = ak.argsort(np.hypot(px, py), axis=1, ascending=False, stable=True)
    columns = kinematic_columns(*(x[order] for x in (px, py, pz, energy)))
    if pid is not None:
        pid = ak.values_astype(pid[order], np.int32)
        columns |= _identity(pid)
    table = {"label": np.array(label, dtype=np.int64), "jet_nparticles": ak.num(px)}
    table |= {name: ak.values_astype(column, np.float32) for name, column in columns.items()}
    if pid is not None:
        table["part_pid"] = pid
    return ak.zip(table, depth_limit=1)


def kinematic_columns(px, py, pz, energy):
    """The columns that follow from the particles' four-vectors, as of `jets_table`.

    Parameters
    ----------
    px, py, pz, energy : ak.Array
        Jagged arrays (jets, particles), in GeV and in their final order.

    Returns
    -------
    dict of ak.Array
        `jet_pt`, `jet_eta`, `jet_phi`, `jet_energy`, `jet_mass` (jets,) and `part_px`, `part_py`,
        `part_pz`, `part_energy`, `part_deta`, `part_dphi` (jets, particles), float64.
    """
    px, py, pz, energy = (ak.values_astype(x, np.float64) for x in (px, py, pz, energy))
    jet_px, jet_py, jet_pz, jet_energy = (ak.sum(x, axis=1) for x in (px, py, pz, energy))
    jet_pt = np.hypot(jet_px, jet_py)
    jet_eta = _pseudorapidity(jet_pt, jet_pz)
    jet_phi = np.arctan2(jet_py, jet_px)
    mass2 = (jet_energy - jet_pz) * (jet_energy + jet_pz) - jet_pt**2

    deta = (_pseudorapidity(np.hypot(px, py), pz) - jet_eta) * np.where(jet_eta < 0, -1.0, 1.0)
    dphi = (np.arctan2(py, px) - jet_phi + np.pi) % (2 * np.pi) - np.pi
    return {
        "jet_pt": jet_pt,
        "jet_eta": jet_eta,
        "jet_phi": jet_phi,
        "jet_energy": jet_energy,
        "jet_mass": np.sqrt(np.maximum(mass2, 0)),
        "part_px": px,
        "part_py": py,
        "part_pz": pz,
        "part_energy": energy,
        "part_deta": deta,
        "part_dphi": dphi,
    }


def write_parquet(tables, path):
    """Write jets as a parquet file, the same bytes for the same jets.

    The file appears under its name only when it is complete.

    Parameters
    ----------
    tables : ak.Array or iterable of ak.Array
        What `jets_table` returns; of several, each becomes a row group.
    path : path-like
        The file to write or replace.

    Raises
    ------
    ValueError
        There are no tables.
    """
    tables = iter([tables] if isinstance(tables, ak.Array) else tables)
    arrow = (ak.to_arrow_table(table, extensionarray=False, list_to32=True) for table in tables)
    first = next(arrow, None)
    if first is None:
        raise ValueError("there are no jets to write")
    with atomic(path) as partial, _parquet_writer(partial, first.schema) as writer:
        for rows in chain([first], arrow):
            writer.write_table(rows)


def write_root(table, path):
    """Write jets as the TTree `tree` of a ROOT file, as JetClass is published.

    The file appears under its name only when it is complete.

    Parameters
    ----------
    table : ak.Array
        One record per jet; its lists `part_*` have one length per jet, which becomes `npart`.
    path : path-like
        The file to write or replace.
    """
    jagged = [name for name in table.fields if name.startswith("part_")]
    branches = {"part": ak.zip({name.removeprefix("part_"): table[name] for name in jagged})} | {
        name: table[name] for name in table.fields if name not in jagged
    }
    with atomic(path) as partial, uproot.recreate(partial, compression=uproot.ZSTD(9)) as file:
        tree = file.mktree("tree", {name: column.type for name, column in branches.items()})
        tree.extend(branches)


def _pseudorapidity(pt, pz):
    return np.arcsinh(pz / ak.where(pt > 0, pt, np.inf))


def _identity(pid):
    """Charge and class flags (jets, particles) of PDG ids."""
    positive, negative = _any(pid, POSITIVE_HADRONS), _any(-pid, POSITIVE_HADRONS)
    leptons = np.sign(pid) * ((abs(pid) == 11) | (abs(pid) == 13))
    return {
        "part_charge": positive * 1.0 - negative * 1.0 - leptons,
        "part_isChargedHadron": positive | negative,
        "part_isNeutralHadron": _any(abs(pid), NEUTRAL_HADRONS),
        "part_isPhoton": pid == 22,
        "part_isElectron": abs(pid) == 11,
        "part_isMuon": abs(pid) == 13,
    }


def _any(pid, species):
    return ak.unflatten(np.isin(ak.flatten(pid), species), ak.num(pid))


def _parquet_writer(path, schema):
    """Few-valued columns as dictionaries; the others with their exponent bytes together."""
    few, many = [], []
    for field in schema:
        is_list = pa.types.is_list(field.type)
        leaf = f"{field.name}.list.element" if is_list else field.name
        dtype = field.type.value_type if is_list else field.type
        flag = field.name == "part_charge" or field.name.startswith("part_is")
        (few if flag or pa.types.is_integer(dtype) else many).append(leaf)
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=9,
        use_dictionary=few,
        use_byte_stream_split=many,
    )
