"""The circuit of a network, written to a folder and to one page."""

import html
import json
from dataclasses import dataclass

import numpy as np

from jetzoo import UserError
from jetzoo import page as pages
from jetzoo import tables as files_of_jets
from jetzoo.jets import num_particles, true_labels

from . import figures
from .circuits import Circuit, find_circuit
from .explorer import spread
from .figures.circuits import FAINTEST
from .interventions import nodes
from .recorder import check_states, transformer
from .sample import read_jets
from .studies import with_counterpart
from .subjets import has_fastjet
from .survey import finite_jets

JETS = 1000
WEAK = 0.1  # of the strongest path; weaker ones do not make a head a relay


def roles(found):
    """Tell what each head of a circuit does.

    Parameters
    ----------
    found : Circuit

    Returns
    -------
    dict of Node to {"source", "relay", "readout", "not patched"}
        A readout acts on the end of the network more than on other heads; a source acts on other
        heads, and none of the circuit acts on it; a relay does both. Of large circuits, the heads
        of small effect are not patched.
    """
    direct, sent, received = (dict.fromkeys(found.heads, 0.0) for _ in range(3))
    for edge in found.edges:
        size, sender, receiver = abs(edge["effect"]), edge["sender"], edge["receiver"]
        if receiver is None:
            direct[sender] = max(direct[sender], size)
        else:
            sent[sender] = max(sent[sender], size)
            received[receiver] = max(received[receiver], size)
    strongest = max([*sent.values(), *direct.values()], default=0)

    patched = {edge["sender"] for edge in found.edges}

    def role(head):
        if head not in patched:
            return "not patched"
        if direct[head] >= sent[head] and direct[head] > 0:
            return "readout"
        return "relay" if received[head] > WEAK * strongest else "source"

    return {head: role(head) for head in found.heads}


@dataclass
class CircuitReport:
    """The result of :func:`circuit`.

    Attributes
    ----------
    about : dict
        Network, classes, number of jets, and the share of AUC - 1/2 to keep.
    found : Circuit
    notes : list of str
    """

    about: dict
    found: Circuit
    notes: list

    def effect_rows(self):
        """The effects as flat dicts, with the nodes by their names."""
        return [{**effect, "node": effect["node"].name} for effect in self.found.effects]

    def path_rows(self):
        """The paths as flat dicts; a path to the end of the network has the receiver "logits"."""
        return [
            {
                **edge,
                "sender": edge["sender"].name,
                "receiver": "logits" if edge["receiver"] is None else edge["receiver"].name,
            }
            for edge in self.found.edges
        ]

    def write(self, folder):
        """Write figures (PNG, PDF), ``effects.csv``, ``paths.csv``, JSON and ``index.html``.

        Returns
        -------
        list of Path
        """
        panels = [
            pages.Panel(
                "circuit",
                "The circuit",
                "Heads of the smallest circuit and the paths between them. Numbers, in heads for "
                "their direct effect on the logits and on arrows for that of a path, are percent "
                f"of what corrupting the jet does; below {100 * FAINTEST:.0f} there are "
                "none, and dotted paths are negative.",
                figures.circuit_graph(self.found, roles(self.found)),
            ),
            pages.Panel(
                "effects",
                "Each part alone",
                "AUC lost when the value of one part is zero, its mean over jets and particles, or "
                "that of another jet.",
                figures.node_effects(self.found.effects),
            ),
        ]
        contents = pages.draw(panels)
        contents["effects.csv"] = pages.csv_text(self.effect_rows())
        contents["paths.csv"] = pages.csv_text(self.path_rows())
        content = {
            **self.about,
            "notes": self.notes,
            "auc": self.found.auc,
            "circuit": [head.name for head in self.found.heads],
            "roles": {head.name: role for head, role in roles(self.found).items()},
            "circuit_auc": self.found.circuit_auc,
            "num_edited": self.found.num_edited,
            "effects": self.effect_rows(),
            "paths": self.path_rows(),
        }
        contents["circuit.json"] = json.dumps(content, indent=2, allow_nan=False) + "\n"
        body = [f"<p>{html.escape(text)}</p>" for text in (self.sentence(), *self.notes)]
        if self.found.heads:
            body.append(pages.table(self.lines(), HEADER))
        body += [pages.figure(panel, contents) for panel in panels]
        contents["index.html"] = pages.page(f"Circuit of {self.about['network']}", body)
        return pages.write(folder, contents)

    def sentence(self):
        """Say what the smallest circuit is."""
        found, num = self.found, sum(e["node"].what == "head" for e in self.found.effects) // 3
        kept = f"{100 * self.about['kept']:g}%"
        return (
            f"{len(found.heads)} of {num} heads keep {kept} of the AUC over 1/2: "
            f"{found.circuit_auc:.4f} of {found.auc:.4f}, on {self.about['num_jets']:,} jets. "
            f"Parts were ablated and paths patched on {found.num_edited:,} of them; errors are "
            "standard errors over these."
        )

    def lines(self):
        """Texts of a table of the heads: name, role, AUC lost and log-odds in mean ablation."""
        role = roles(self.found)
        means = {e["node"]: e for e in self.found.effects if e["mode"] == "mean"}
        return [
            (
                head.name,
                role[head],
                f"{-means[head]['auc_change']:.4f} ± {means[head]['auc_change_error']:.4f}",
                f"{means[head]['log_odds_change']:.3f} ± "
                f"{means[head]['log_odds_change_error']:.3f}",
            )
            for head in self.found.heads
        ]

    def tables(self):
        """Put the heads of the circuit into a table for the terminal."""
        from rich.table import Table

        table = Table(*HEADER, caption=self.sentence())
        for line in self.lines():
            table.add_row(*line)
        return [table]


HEADER = ("head", "role", "AUC lost alone", "change of the log-odds")


def circuit(tagger, network, files, *, jets=None, batch_size=64, kept=0.95, **options):
    """Find out which parts of a trained network carry its decision.

    Parameters
    ----------
    tagger : jetzoo.tagger.Tagger
    network : str or Path
        The network file of the tagger.
    files : sequence of str or Path
        Jets with the branches of the data config, and labels.
    jets : int or sequence of int, optional
        The first so many jets, or the indices of some. By default 1,000, at equal distances.
        Parts are ablated and paths patched on at most 1,000 of them.
    batch_size : int
    kept : float
        Share of AUC - 1/2, by the heads of the circuit.
    **options
        Of the network; not used, as the tagger has them.

    Returns
    -------
    CircuitReport

    Raises
    ------
    UserError
        If no head of the particle attention can be changed, FastJet is missing, or the jets have no
        labels or are of one class.
    """
    tagger = with_counterpart(tagger)
    core = transformer(tagger.model)
    if core is None or not any(
        n.what == "head" and n.kind == "particle" for n in nodes(tagger.model)
    ):
        raise UserError(f"{network} has no heads of particle attention that can be patched.")
    check_states(tagger.model, network)
    if not has_fastjet():
        raise UserError("The circuit needs subjets: install the package fastjet.")
    if jets is None:
        treename = tagger.data_config.treename
        total = sum(files_of_jets.describe(path, treename)[1] for path in files)
        jets = spread(total, JETS) if total else None
    sample, _, notes = finite_jets(tagger, read_jets(tagger, files, jets), jets)
    counts, labels = num_particles(tagger, sample), true_labels(tagger, sample)
    if labels is None or len(np.unique(labels)) < 2:
        raise UserError("A circuit takes jets of two known classes or more.")
    order = np.argsort(counts, kind="stable")
    sample = sample[order[counts[order] > 1]]
    found = find_circuit(tagger, sample, batch_size, kept)
    if found.auc <= 0.5:
        notes.append(f"The network does not tell these jets apart: its AUC is {found.auc:.2f}.")
    about = {"network": str(network), "classes": tagger.classes, "num_jets": len(sample)}
    about["kept"] = kept
    return CircuitReport(about, found, notes)
