"""Bias, resolution and tails of a regression, against normal distributions."""

import math

import numpy as np
import pytest
import torch

from jetzoo import UserError
from jetzoo.metrics import regression
from jetzoo.training.regression import log_cosh, regression_loss, with_targets


@pytest.fixture(scope="module")
def jets():
    """Truth and predictions of two targets: 2% above and 5% wide; 0.3 below and 0.7 wide."""
    rng = np.random.default_rng(1)
    truth = np.stack((rng.uniform(50, 150, 40_000), rng.normal(0, 2, 40_000)), axis=1)
    noise = rng.normal(size=truth.shape)
    predicted = truth + np.stack(
        (truth[:, 0] * (0.02 + 0.05 * noise[:, 0]), 0.7 * noise[:, 1] - 0.3), 1
    )
    return truth, predicted


def test_bias_resolution_and_tails(jets):
    found = regression.evaluate(*jets, ["mass", "shift"])
    mass, shift = found["targets"].values()
    assert found["num_jets"] == 40_000
    assert mass["relative_bias"] == pytest.approx(0.02, abs=0.001)
    assert mass["relative_resolution"] == pytest.approx(0.05, rel=0.02)
    assert shift["relative_bias"] is None
    for row in (shift, *shift["bins"]):
        assert abs(row["bias"] + 0.3) < 4 * row["bias_error"]
        assert abs(row["resolution"] - 0.7) < 4 * row["resolution_error"]
        assert abs(row["tails"] - 0.0027) < 5 * row["tails_error"]
    for row in mass["bins"]:
        width = 0.05 * row["mean"]
        assert row["bias"] == pytest.approx(0.02 * row["mean"], abs=5 * width / 60)
        assert row["resolution"] == pytest.approx(width, rel=0.08)
    assert [row["num_jets"] for row in mass["bins"]] == [4000] * 10


def test_errors_are_those_of_repeated_samples():
    rng = np.random.default_rng(2)
    truth = np.zeros(400)
    rows = [regression.measure(truth, rng.normal(size=400)) for _ in range(400)]
    for name in ("bias", "resolution"):
        spread = np.std([row[name] for row in rows])
        assert np.mean([row[f"{name}_error"] for row in rows]) == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize(
    "truth, bins",
    [
        (np.arange(120.0), 2),
        (np.arange(3.0), 1),
        (np.full(300, 7.0), 1),
        (np.repeat([1.0, 2.0], [290, 10]), 1),
    ],
)
def test_bins_hold_all_jets(truth, bins):
    edges, index = regression.bins(truth)
    assert len(edges) == bins + 1 and sorted(set(index)) == list(range(bins))
    found = regression.evaluate(truth[:, None], truth[:, None] + 1, ["x"])["targets"]["x"]
    assert sum(row["num_jets"] for row in found["bins"]) == len(truth)
    assert found["bias"] == 1 and found["resolution"] == 0
    regression.summary({"targets": {"x": found}})
    regression.figure(truth, truth + 1, "x")


def test_figures(jets):
    figures = regression.figures(*jets, ["mass", "shift"])
    assert list(figures) == ["regression_mass", "regression_shift"]
    assert list(regression.figures(*(x[:, :1] for x in jets), ["mass"])) == ["regression"]
    axes = figures["regression_mass"].get_axes()
    assert {"Predicted mass", "Bias", "Resolution", "Tails [%]"} <= {x.get_ylabel() for x in axes}


def test_what_cannot_be_evaluated_is_named(jets):
    truth, predicted = (x[:10].copy() for x in jets)
    with pytest.raises(UserError, match="no jets"):
        regression.evaluate(truth[:0], predicted[:0], ["a", "b"])
    predicted[3, 1] = np.nan
    with pytest.raises(UserError, match="1 of 10 jets have predictions"):
        regression.evaluate(truth, predicted, ["a", "b"])


def test_losses():
    x = torch.tensor([-30.0, -1.0, 0.0, 1e-3, 2.0, 200.0], dtype=torch.double)
    zero = torch.zeros_like(x)
    expected = np.mean([math.log(math.cosh(value)) for value in x.tolist()])
    assert log_cosh(x, zero).item() == pytest.approx(expected, rel=1e-9)
    assert regression_loss("mse")(x[3:5], zero[3:5]).item() == pytest.approx((1e-6 + 4) / 2)
    assert regression_loss("huber")(x[3:5], zero[3:5]).item() == pytest.approx((5e-7 + 1.5) / 2)
    with pytest.raises(UserError, match="one of log-cosh, mse, huber, not 'l1'"):
        regression_loss("l1")


def test_targets_of_a_batch():
    class Config:
        label_names = ("a", "b")

    labels = {"a": torch.tensor([1, 2]), "b": torch.tensor([3.0, 4.0])}
    _, found, _ = with_targets(({}, labels, {}), Config)
    assert found["a"].tolist() == [[1, 3], [2, 4]] and found["b"].tolist() == [3, 4]
