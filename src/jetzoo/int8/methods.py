"""Rows of the int8 methods and observers, from which checks, help texts and scripts derive."""

METHODS = {
    "static": "fixed ranges from calibration jets; the fastest",
    "dynamic": "one scale per token, found at run time; no calibration",
    "weight-only": "integer weights, float32 products; the smallest change of the scores",
}

OBSERVERS = {
    "percentile": "all but a ten-thousandth of the values at each end",
    "mse": "the range with the least mean squared error of rounding and clipping",
}
