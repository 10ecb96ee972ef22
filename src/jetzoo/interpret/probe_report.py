"""What a network knows, layer by layer: probes written to a folder and to one page."""

import html
import json
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from jetzoo import UserError
from jetzoo import page as pages
from jetzoo.metrics.numbers import evaluate

from . import figures
from .observables import OBSERVABLES, has_fastjet
from .probes import FOLDS, discriminant, gather, ridge_r2, without_mass
from .recorder import check_states, transformer
from .sample import read_jets
from .studies import initial, with_counterpart
from .survey import finite_jets

FEWEST = 100  # jets


@dataclass
class ProbeReport:
    """The result of :func:`probe`.

    Attributes
    ----------
    about : dict
        Network, classes and number of jets.
    rows : list of dict
        Of each source ("trained", "untrained", which is the same with initial weights, "inputs"),
        state and observable: ``r2``, ``r2_error``, and ``r2_beyond_mass`` with its
        error, of what a polynomial in the logarithm of the mass leaves of the observable.
    class_rows : list of dict
        Of each source and state: ``accuracy`` and ``auc`` of a trained probe, and of the logit
        lens. Empty without labels.
    notes : list of str
    """

    about: dict
    rows: list
    class_rows: list
    notes: list

    def write(self, folder):
        """Write figures (PNG, PDF), ``probes.csv``, ``classes.csv``, JSON and ``index.html``.

        Returns
        -------
        list of Path
        """
        panels = self.panels()
        contents = pages.draw(panels)
        contents["probes.csv"] = pages.csv_text(self.rows)
        if self.class_rows:
            contents["classes.csv"] = pages.csv_text(self.class_rows)
        content = {**self.about, "notes": self.notes, "probes": self.rows}
        content["classes_by_state"] = self.class_rows
        contents["probes.json"] = json.dumps(content, indent=2, allow_nan=False) + "\n"
        contents["index.html"] = self.page(panels, contents)
        return pages.write(folder, contents)

    def panels(self):
        """Draw the figures.

        Returns
        -------
        list of Panel
        """
        panels = [
            pages.Panel(
                "r2",
                "What can be read from each layer",
                f"R2 of ridge regressions from the mean over particles, or from the class token, "
                f"after each layer; {FOLDS}-fold cross-validation.",
                figures.probe_map(self.rows, "r2"),
            ),
            pages.Panel(
                "beyond_mass",
                "The same beyond the mass",
                "R2 for what a cubic polynomial in the logarithm of the mass leaves of each "
                "observable.",
                figures.probe_map(self.rows, "r2_beyond_mass"),
            ),
            pages.Panel(
                "gain",
                "What the training brought",
                "R2 of the trained network less that of the same network with initial weights.",
                figures.probe_map(self.rows, "r2", gain=True),
            ),
        ]
        if self.class_rows:
            panels.append(
                pages.Panel(
                    "classes",
                    "The class, layer by layer",
                    "AUC of a linear discriminant of each state, and of the end of the network put "
                    "behind it (logit lens).",
                    figures.class_by_layer(self.class_rows),
                )
            )
        return panels

    def best(self):
        """The row of the largest R2 of each observable in the trained network."""
        found = {}
        for row in self.rows:
            if row["source"] == "trained" and row["r2"] is not None:
                name = row["observable"]
                if name not in found or row["r2"] > found[name]["r2"]:
                    found[name] = row
        return list(found.values())

    def lines(self):
        """Texts of a table: observable, state, and R2 of the three sources."""
        others = {(row["source"], row["state"], row["observable"]): row["r2"] for row in self.rows}
        lines = []
        for row in self.best():
            untrained = others.get(("untrained", row["state"], row["observable"]))
            inputs = others.get(("inputs", "inputs", row["observable"]))
            numbers = (row["r2"], row["r2_beyond_mass"], untrained, inputs)
            lines.append(
                (row["observable"], row["state"])
                + tuple("–" if x is None else f"{x:.3f}" for x in numbers)
            )
        return lines

    def tables(self):
        """Put the best state of each observable into a table for the terminal."""
        from rich.table import Table

        table = Table(*HEADER)
        for line in self.lines():
            table.add_row(*line)
        return [table]

    def page(self, panels, contents):
        """Write ``index.html``; ``contents`` hold the figures, see :func:`jetzoo.page.draw`."""
        texts = (f"{self.about['num_jets']:,} jets.", *self.notes)
        body = [f"<p>{html.escape(text)}</p>" for text in texts]
        body += ["<h2>Observables</h2>", pages.table(self.lines(), HEADER)]
        known = {row["observable"] for row in self.rows}
        body.append(pages.table([(k, text) for k, text in OBSERVABLES.items() if k in known]))
        body += [pages.figure(panel, contents) for panel in panels]
        return pages.page(f"What {self.about['network']} knows", body)


HEADER = ("observable", "best in", "R2", "beyond mass", "initial weights", "inputs")


def probe(tagger, network, files, *, jets=None, batch_size=64, **options):
    """Find out which observables can be read from the states of a trained network.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network : str or Path
        The network file of the tagger.
    files : sequence of str or Path
        Jets with the branches of the data config.
    jets : int or sequence of int, optional
        The first so many jets, or the indices of some. By default all.
    batch_size : int
    **options
        Of the network, for its untrained twin.

    Returns
    -------
    ProbeReport

    Raises
    ------
    UserError
        If the network is no transformer whose states can be read, or there are fewer than 100 jets
        with three particles.
    """
    tagger = with_counterpart(tagger)
    if transformer(tagger.model) is None:
        raise UserError(f"{network} has no residual stream to probe: it is no transformer.")
    check_states(tagger.model, network)
    sample, _, notes = finite_jets(tagger, read_jets(tagger, files, jets), jets)
    twin = initial(network, tagger, sample, **options)
    found = gather({"trained": tagger.model, "untrained": twin}, tagger, sample, batch_size)
    num_jets = len(found.inputs)
    if num_jets < FEWEST:
        raise UserError(f"Probes take {FEWEST} jets with three particles; here are {num_jets}.")
    if num_jets < len(sample):
        left = len(sample) - num_jets
        notes.append(f"{left:,} jets have fewer than three particles: they are left out.")
    if not has_fastjet():
        notes.append(
            "The fastjet package is not installed: there is no soft-drop mass and no tau21, tau32."
        )
    if found.labels is None:
        notes.append("The jets have no labels: the class is not probed.")
    rows = _rows(found)
    has_classes = found.labels is not None and np.bincount(found.labels).max() < num_jets
    class_rows = _class_rows(found, tagger.classes) if has_classes else []
    about = {"network": str(network), "classes": tagger.classes, "num_jets": num_jets}
    return ProbeReport(about, rows, class_rows, notes)


def _sources(found):
    """List (source, state, values (num_jets, D)) of all that is probed."""
    sources = [(source, str(place), x) for (source, place), x in found.states.items()]
    return [*sources, ("inputs", "inputs", found.inputs)]


def _rows(found):
    names = list(found.observables)
    targets = np.stack([found.observables[name] for name in names], 1)  # (num_jets, T)
    beyond = without_mass(targets, found.observables["mass"])
    both = np.concatenate((targets, beyond), 1)
    rows = []
    for source, state, x in tqdm(_sources(found), desc="probes"):
        r2, error = ridge_r2(x, both)
        for k, name in enumerate(names):
            after = k + len(names)
            rows.append(
                {
                    "source": source,
                    "state": state,
                    "observable": name,
                    "r2": _number(r2[k]),
                    "r2_error": _number(error[k]),
                    "r2_beyond_mass": None if name == "mass" else _number(r2[after]),
                    "r2_beyond_mass_error": None if name == "mass" else _number(error[after]),
                }
            )
    return rows


def _class_rows(found, classes):
    lens = {(source, str(place)): x for (source, place), x in found.lens.items()}
    rows = []
    for source, state, x in tqdm(_sources(found), desc="classes"):
        row = {"source": source, "state": state}
        probed = discriminant(x, found.labels, len(classes))
        for name, scores in (("probe", probed), ("lens", lens.get((source, state)))):
            metrics = {} if scores is None else evaluate(found.labels, scores, classes)
            row |= {f"{name}_{key}": metrics.get(key) for key in ("accuracy", "auc")}
        rows.append(row)
    return rows


def _number(value):
    return float(value) if np.isfinite(value) else None
