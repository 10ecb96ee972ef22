"""Which figures a report shows of a network, and what stands beside them."""

from jetzoo.page import Panel

from . import figures
from .counterparts import implied_attention, shared_buckets, slot_projections
from .recorder import is_graph


def study_panels(model, found, results):
    """Draw what there is to show of a network.

    Parameters
    ----------
    model : nn.Module
    found : Study
    results : list of (Ablation, dict)
        Empty without ablations.

    Returns
    -------
    list of Panel
    """
    panels = [] if is_graph(model) else _weight_panels(found)
    if found.importance:
        panels.append(
            Panel(
                "importance",
                "Importance of particles",
                "What the class token looks at, directly and followed down through the layers by "
                "rollout; the dotted line is a token that looks at all particles alike.",
                figures.importance(found),
            )
        )
    if results:
        panels.append(
            Panel(
                "ablation",
                "Ablations",
                "AUC of the trained network when some of its attention is taken away, without any "
                "further training.",
                figures.ablation(results),
            )
        )
    projections = slot_projections(model)
    if projections:
        panels.append(
            Panel(
                "slots",
                "Projections to slots",
                "Which particles, by rank in pT, feed which slot of the keys.",
                figures.slots(projections),
            )
        )
    for drawn in found.drawn:
        panels += _graph_panels(drawn) if is_graph(model) else _jet_panels(model, drawn)
    return panels


def _weight_panels(found):
    """Panels of the weights of the particle attention."""
    panels = []
    if "non_binary" in found.rows:
        panels += [
            Panel(
                "sparsity",
                "Sparsity by layer and head",
                "Rows of the particle attention that are not binary, the number of particles that "
                "a particle effectively looks at, and how often the pair bias decides at whom.",
                figures.sparsity(found),
            ),
            Panel(
                "weights",
                "Distribution of attention weights",
                "All weights of the particle attention, in 20 bins; the untrained network is the "
                "same with initial weights.",
                figures.weight_distribution(found),
            ),
        ]
    if found.ratios is not None:
        panels.append(
            Panel(
                "score_ratio",
                "Scores against pair bias",
                "Size of the scores A = q.k / sqrt(d) relative to the interaction U that is added "
                "to them; what is beyond the axis is counted at its ends.",
                figures.score_ratio(found),
            )
        )
    return panels


def _graph_panels(drawn):
    """Panels of one jet for a network in which particles have neighbours."""
    return [
        Panel(
            f"jet{drawn.index}_neighbours",
            f"Jet {drawn.index}: neighbour graph",
            "Lines join particles of which one is among the nearest of the other.",
            figures.neighbour_graph(drawn),
        )
    ]


def _jet_panels(model, drawn):
    """Panels of one jet: its attention, the pair interaction, and what a mixer has in place."""
    jet, n = drawn.index, max(int(drawn.batch.num_particles[0]), 1)
    panels = []
    if any(r.kind == "particle" for r in drawn.records):
        panels.append(
            Panel(
                f"jet{jet}_maps",
                f"Jet {jet}: attention matrices",
                "Particles in order of descending pT; each row adds up to one.",
                figures.attention_maps(drawn),
            )
        )
    panels.append(
        Panel(
            f"jet{jet}_graph",
            f"Jet {jet}: attention graph",
            "Width of the lines is attention, the mean over heads; self-attention is not drawn.",
            figures.attention_graph(drawn),
        )
    )
    if any(r.bias is not None for r in drawn.records):
        panels.append(
            Panel(
                f"jet{jet}_interaction",
                f"Jet {jet}: interaction matrix",
                "What the pair embedding adds to the scores of all layers, for each head.",
                figures.interaction(drawn),
            )
        )
    buckets = [m[0, :n, :n] for m in shared_buckets(model, drawn.batch)]
    if buckets:
        panels.append(
            Panel(
                f"jet{jet}_buckets",
                f"Jet {jet}: shared buckets",
                "Share of heads and rounds of hashing in which two particles have the same hash.",
                figures.layer_matrices(buckets, "share of common buckets"),
            )
        )
    implied = [m[0, :n, :n] for m in implied_attention(model, drawn.batch)]
    if implied:
        implied = [m / m.sum(-1, keepdim=True).clamp(min=1e-12) for m in implied]
        label = "implied attention\n(square-root scale)"
        panels.append(
            Panel(
                f"jet{jet}_scan",
                f"Jet {jet}: implied attention of the scan",
                "Size of the coefficient with which the scan carries a particle to a later one, "
                "the mean over channels, rows scaled to one.",
                figures.layer_matrices(implied, label, norm=figures.WEIGHT_NORM),
            )
        )
    return panels
