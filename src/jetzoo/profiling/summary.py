"""The numbers of runs, as flat dicts for CSV files and as lines of text for tables."""

from dataclasses import asdict

from .loading import KINDS as LOADER_KINDS
from .rows import merge, seconds_by
from .steps import NETWORK, PARTS, STEP

SMALLEST = 0.0005  # of the time, of a row of a table

COLUMNS = (
    "module",
    "type",
    "calls",
    "time [ms]",
    "share",
    "GFLOP",
    "MB moved",
    "FLOP/byte",
    "GFLOP/s",
    "GB/s",
    "bound by",
    "of the bound",
)
OVERVIEW = ("configuration", "mode", "ms", "jets/s", "times", "GFLOP", "MB moved", "peak MiB")


def first(runs, run):
    """Find the first run of the mode of another."""
    return next(other for other in runs if other.mode == run.mode)


def module_rows(runs):
    """Put every module of every run into a flat dict."""
    return [_module_row(run, row) for run in runs for row in run.rows]


def _module_row(run, row):
    within = _within(run, row)
    bound, share = row.bound(run.limits)
    return {
        "configuration": run.label,
        "mode": run.mode,
        "module": row.module,
        "type": row.type,
        "kind": row.kind,
        "calls": row.calls,
        "milliseconds": _digits(1e3 * row.seconds),
        "share": _digits(row.seconds / sum(r.seconds for r in run.rows)),
        "forward_milliseconds": _digits(1e3 * row.forward_seconds),
        "backward_milliseconds": _digits(1e3 * row.backward_seconds),
        "forward_milliseconds_with_inner": _digits(1e3 * row.inclusive_seconds),
        "flops": row.flops,
        "bytes_moved": row.bytes_moved,
        "operations": row.operations,
        "flops_with_inner": sum(r.flops for r in within),
        "bytes_moved_with_inner": sum(r.bytes_moved for r in within),
        "flops_per_byte": _digits(row.intensity),
        "flops_per_second": _digits(row.flops / row.seconds if row.seconds else None),
        "bytes_per_second": _digits(row.bytes_moved / row.seconds if row.seconds else None),
        "bound": bound,
        "of_the_bound": _digits(share),
    }


def _within(run, row):
    """Rows of a module and of those within it."""
    if row.module == NETWORK:
        return [r for r in run.rows if r.module not in (*PARTS, STEP)]
    inner = f"{row.module}."
    return [r for r in run.rows if r is row or r.module.startswith(inner)]


def kind_rows(runs, machine):
    """Put the time by kind of layer of every run into flat dicts.

    Parameters
    ----------
    runs : list of ProfileRun
    machine : dict of str
        See :func:`jetzoo.profiling.machine_stamp`.
    """
    rows = []
    for run in runs:
        kinds = seconds_by(run.rows, "kind")
        for kind, seconds in kinds.items():
            share = seconds / sum(kinds.values())
            rows.append(
                {
                    "configuration": run.label,
                    "mode": run.mode,
                    "jets": run.num_jets,
                    "kind": kind,
                    "microseconds_per_jet": _digits(1e6 * share / run.jets_per_second),
                    "share": _digits(share),
                    "jets_per_second": _digits(run.jets_per_second),
                    "times_first": _digits(first(runs, run).seconds / run.seconds),
                    **machine,
                }
            )
    return rows


def run_rows(runs):
    """Put every run into a flat dict; limits of the machine are a dict within."""
    return [
        {
            "configuration": run.label,
            "mode": run.mode,
            "jets": run.num_jets,
            "milliseconds": _digits(1e3 * run.seconds),
            "spread": _digits(run.spread),
            "jets_per_second": _digits(run.jets_per_second),
            "times_first": _digits(first(runs, run).seconds / run.seconds),
            "time_with_hooks": _digits(run.hooked),
            "flops": sum(row.flops for row in run.rows),
            "bytes_moved": sum(row.bytes_moved for row in run.rows),
            "peak_memory_bytes": run.peak,
            "limits": {name: _digits(x) for name, x in asdict(run.limits).items()},
        }
        for run in runs
    ]


def loading_rows(loading):
    """Put the rates of the loader into flat dicts."""
    return [
        {"files": LOADER_KINDS[in_memory], "workers": workers, "jets_per_second": _digits(rate)}
        for (in_memory, workers), rate in loading.rates.items()
    ]


def overview_lines(runs):
    """Write one line of text for each run, in the order of ``OVERVIEW``."""
    return [
        (
            run.label,
            run.mode,
            _short(1e3 * run.seconds),
            f"{run.jets_per_second:,.0f}",
            f"{first(runs, run).seconds / run.seconds:.2f}",
            _short(sum(row.flops for row in run.rows) / 1e9),
            _short(sum(row.bytes_moved for row in run.rows) / 1e6),
            "–" if run.peak is None else _short(run.peak / 2**20),
        )
        for run in runs
    ]


def module_lines(run):
    """Write merged rows as text, in the order of ``COLUMNS``; the smallest ones are left out."""
    total = sum(row.seconds for row in run.rows)
    lines = []
    for row in merge(run.rows):
        if row.seconds < SMALLEST * total:
            break
        verdict, share = row.bound(run.limits)
        rate = 1e-9 / row.seconds
        lines.append(
            (
                row.short,
                row.type,
                f"{row.calls}",
                _short(1e3 * row.seconds),
                f"{100 * row.seconds / total:.1f}%",
                _short(row.flops / 1e9),
                _short(row.bytes_moved / 1e6),
                "–" if row.intensity is None else _short(row.intensity),
                _short(rate * row.flops),
                _short(rate * row.bytes_moved),
                verdict.removesuffix("-bound") or "–",
                f"{100 * share:.0f}%" if verdict else "–",
            )
        )
    return lines


def _digits(x):
    """Round to four significant digits; None stays None."""
    return None if x is None else float(f"{x:.4g}")


def _short(x):
    """Write three digits without an exponent."""
    if 0 < x < 1e-3:
        return "<0.001"
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"
