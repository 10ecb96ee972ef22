"""The evaluation loop of classes or of a regression."""

import functools

from weaver.utils.nn.tools import evaluate_classification

from jetzoo.labels import is_regression, outputs

from .regression import evaluate_regression

# Up to so many classes weaver logs the AUC of each pair; 188 classes have 17,578 pairs, whose AUCs
# take longer than an epoch.
FEW_CLASSES = 20


def evaluation(config):
    """The evaluation loop that the labels of a data config ask for.

    Parameters
    ----------
    config : weaver.utils.data.config.DataConfig

    Returns
    -------
    callable
        weaver's ``evaluate_classification``, or
        :func:`jetzoo.training.regression.evaluate_regression`.
    """
    if is_regression(config):
        return evaluate_regression
    if len(outputs(config)) > FEW_CLASSES:
        return functools.partial(evaluate_classification, eval_metrics=["confusion_matrix"])
    return evaluate_classification
