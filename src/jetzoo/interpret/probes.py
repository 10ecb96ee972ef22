"""Linear probes: what of a jet can be read from the residual stream of a network."""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from jetzoo import UserError

from .observables import observables
from .sample import batches
from .states import logit_lens, record_states

FOLDS = 5
ALPHAS = np.logspace(-2, 5, 15)
# Powers of ln(mass) that are regressed out.
POWERS = 3


@dataclass
class Knowledge:
    """States of some jets and what is true of them.

    Attributes
    ----------
    states : dict of (str, Place) to ndarray, (num_jets, D)
        By the name of the network and the place in it.
    lens : dict of (str, Place) to ndarray, (num_jets, num_classes)
        Scores of the logit lens.
    inputs : ndarray, (num_jets, 2 C)
        Mean and standard deviation over particles of the inputs.
    observables : dict of str to ndarray, (num_jets,)
    labels : ndarray of int, (num_jets,), or None
    """

    states: dict
    lens: dict
    inputs: np.ndarray
    observables: dict
    labels: np.ndarray | None


@torch.inference_mode()
def gather(models, tagger, jets, batch_size=64):
    """Run jets through networks and keep their states.

    Parameters
    ----------
    models : dict of str to nn.Module
        Networks that take the inputs of the tagger.
    tagger : jetzoo.tagger.Tagger
    jets : ak.Array of records, (num_jets,)
        From :func:`jetzoo.interpret.read_jets`.
    batch_size : int

    Returns
    -------
    Knowledge
        In order of the number of particles, of the jets that have three or more.

    Raises
    ------
    UserError
        If a network is no transformer, or no jet has three particles.
    """
    parts = []
    with tqdm(total=len(jets), unit="jet", desc="states") as bar:
        for batch in batches(tagger, jets, batch_size):
            parts.append(_look(models, batch))
            bar.update(len(batch))
    keys = {
        # Particle types may be known in some batches only; then the leptons are left out.
        name: [
            key for key in getattr(parts[0], name) if all(key in getattr(p, name) for p in parts)
        ]
        for name in ("states", "lens", "observables")
    }
    joined = {
        name: {key: np.concatenate([getattr(p, name)[key] for p in parts]) for key in known}
        for name, known in keys.items()
    }
    inputs = np.concatenate([p.inputs for p in parts])
    if not len(inputs):
        raise UserError("No jet has the three particles that observables of its shape take.")
    labels = None if parts[0].labels is None else np.concatenate([p.labels for p in parts])
    return Knowledge(**joined, inputs=inputs, labels=labels)


def _look(models, batch):
    """States and observables of the jets of a batch that have three particles or more."""
    rows = (batch.num_particles >= 3).cpu().numpy()
    found = Knowledge({}, {}, _moments(batch)[rows], {}, None)
    for name, model in models.items():
        with record_states(model) as states:
            model(*batch.inputs)
        for place, x in states.items():
            found.states[name, place] = x.float().cpu().numpy()[rows]
            found.lens[name, place] = logit_lens(model, x).cpu().numpy()[rows]
    found.observables = {name: x[rows] for name, x in observables(batch).items()}
    if batch.labels is not None:
        found.labels = batch.labels[rows]
    return found


def _moments(batch):
    """Mean and standard deviation over particles of the features, (B, 2 C)."""
    n = batch.mask.shape[1]
    x, real = batch.inputs[1][..., :n].float(), batch.mask[:, None]  # (B, C, n), (B, 1, n)
    count = real.sum(2).clamp(min=1)
    mean = x.masked_fill(~real, 0).sum(2) / count
    spread = ((x - mean[..., None]) ** 2).masked_fill(~real, 0).sum(2) / count
    return torch.cat((mean, spread.sqrt()), 1).cpu().numpy()


def ridge_r2(x, targets, folds=FOLDS):
    """Cross-validated R2 of a ridge regression.

    Parameters
    ----------
    x : ndarray, (num_jets, D)
    targets : ndarray, (num_jets, T)
    folds : int
        Of the cross-validation; the regularisation is chosen within each, for each target.

    Returns
    -------
    r2 : ndarray, (T,)
        Of all predictions of jets that a regression did not see; NaN for a constant target.
    error : ndarray, (T,)
        Standard error over the folds.
    """
    probe = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True))
    split = KFold(folds, shuffle=True, random_state=0)
    mean, width = targets.mean(0), targets.std(0)
    varies = width > 1e-9 * np.maximum(abs(mean), 1)
    scaled = (targets[:, varies] - mean[varies]) / width[varies]
    predicted = cross_val_predict(probe, x, scaled, cv=split).reshape(scaled.shape)
    missed = (predicted - scaled) ** 2
    by_fold = np.stack(
        [1 - missed[test].mean(0) / scaled[test].var(0) for _, test in split.split(x)]
    )
    r2, error = np.full((2, targets.shape[1]), np.nan)
    r2[varies] = 1 - missed.mean(0)
    error[varies] = by_fold.std(0, ddof=1) / np.sqrt(folds)
    return r2, error


def without_mass(targets, log_mass):
    """What is left of targets (num_jets, T) after a polynomial in ln(mass) (num_jets,)."""
    scaled = (log_mass - log_mass.mean()) / max(log_mass.std(), 1e-12)
    basis = np.stack([scaled**power for power in range(POWERS + 1)], 1)
    return targets - basis @ np.linalg.lstsq(basis, targets, rcond=None)[0]


def discriminant(x, labels, num_classes, folds=FOLDS):
    """Cross-validated scores of a linear discriminant of states.

    Parameters
    ----------
    x : ndarray, (num_jets, D)
    labels : ndarray of int, (num_jets,)
    num_classes, folds : int

    Returns
    -------
    ndarray, (num_jets, num_classes)
        Probabilities.
    """
    probe = make_pipeline(
        StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    )
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    scores = np.zeros((len(x), num_classes))
    known = np.unique(labels)
    scores[:, known] = cross_val_predict(probe, x, labels, cv=split, method="predict_proba")
    return scores
