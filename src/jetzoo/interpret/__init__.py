"""What the attention of a trained network looks at: recorder, measures, ablations, figures.

Examples
--------
>>> tagger = jetzoo.load("ParT", "net_best_epoch_state.pt", "QuarkGluon/qg_kin")
>>> report = interpret.explain(tagger, "ParT", ["test.parquet"], jets=1000)
>>> report.write("attention")

>>> with interpret.record(tagger.model) as records:
...     tagger.predict(jets)
>>> interpret.measures.effective_number(records[0].weights)  # (B, H, n)
"""

from . import counterparts, figures, measures
from .ablation import Ablation, ablate, ablations, smallest_k
from .circuit_report import CircuitReport, circuit
from .explore import explore
from .probe_report import ProbeReport, probe
from .prune_report import PruneReport, prune
from .recorder import Record, record, replaced
from .report import AttentionReport, explain
from .sample import Batch, batches, read_jets
from .studies import Study, look, study
from .survey import Survey

__all__ = [
    "Ablation",
    "Batch",
    "CircuitReport",
    "ProbeReport",
    "PruneReport",
    "Record",
    "AttentionReport",
    "Study",
    "Survey",
    "ablate",
    "ablations",
    "batches",
    "circuit",
    "counterparts",
    "explain",
    "explore",
    "figures",
    "look",
    "measures",
    "probe",
    "prune",
    "read_jets",
    "record",
    "replaced",
    "smallest_k",
    "study",
]
