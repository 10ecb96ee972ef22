"""Tables of results in markdown, from the CSV files alone.

Files have the places of their tables marked: ``<!-- NAME -->`` and ``<!-- end of NAME -->``, NAME
being a key of ``BLOCKS``. What stands between the two is replaced.
"""

import re

from common import read_csv
from train_zoo import SETS

from jetzoo import UserError, tables

LENGTHS = (45, 128)  # particles of a typical jet, and of the padded one


def table(headings, rows, words=(0,)):
    """A table in markdown.

    Parameters
    ----------
    headings : sequence of str
    rows : iterable of sequence of str
    words : sequence of int
        The columns that are aligned to the left; the others hold numbers.

    Returns
    -------
    str
    """
    rules = ["---" if column in words else "---:" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, rules, *rows))


def cell(row, name, digits):
    """``0.870 ± 0.003``: the spread over seeds where there are several, else the error."""
    value = row.get(name)
    if not value:
        return ""
    uncertainty = row.get(f"{name}_spread") or row.get(f"{name}_error")
    try:
        value = float(value)
    except ValueError:  # with a remark
        return value
    if digits is None:
        digits = 1 if value < 100 else 0
    text = f"{value:.{digits}f}"
    return f"{text} ± {float(uncertainty):.{digits}f}" if uncertainty else text


def quality_columns(rows, prefix=""):
    """Heading, column and digits of the metrics that a set has."""
    found = [("accuracy", "accuracy", 3), ("AUC", "auc", 4)]
    matches = [re.fullmatch(r"rejection_([A-Za-z0-9]+)_([\d.]+)", name) for name in rows[0]]
    matches = [match for match in matches if match]
    several = len({match[1] for match in matches}) > 1
    for match in matches:
        signal = f"{match[1]} " if several else ""
        found.append((f"{signal}rejection at {match[2]}%", match[0], None))
    return [(heading, prefix + name, digits) for heading, name, digits in found]


def of_models(rows, columns):
    """A table with a row for each model.

    Parameters
    ----------
    rows : list of dict
        Of a CSV.
    columns : list of (str, str, int or None)
        Heading, name in the CSV, and digits; see :func:`cell`.

    Returns
    -------
    str
    """

    def title(row):
        seeds = int(row.get("seeds") or 1)
        return f"`{row['model']}`" + (f" ({seeds} seeds)" if seeds > 1 else "")

    body = [[title(row), *(cell(row, name, n) for _, name, n in columns)] for row in rows]
    return table(["model", *(heading for heading, *_ in columns)], body)


def read_sets(results):
    """The rows of all sets of trainings that have a CSV.

    Parameters
    ----------
    results : Path
        Folder of ``zoo_SET.csv``.

    Returns
    -------
    dict of str to list of dict
    """
    paths = {name: results / f"zoo_{name}.csv" for name in SETS}
    return {name: read_csv(path) for name, path in paths.items() if path.exists()}


def zoo_tables(results):
    """The tables of all sets, and what is published."""
    blocks = []
    for name, rows in read_sets(results).items():
        blocks += tables_of_set(name, rows)
    blocks.append("**Published, on the published data sets** (not comparable with the above):")
    columns = ("data set", "model", "accuracy", "AUC", "rejection at 50%", "at 30%", "source")
    rows = [list(row.values()) for row in read_csv(results / "published.csv")]
    blocks.append(table(columns, rows, words=(0, 1, len(columns) - 1)))
    return "\n\n".join(blocks)


def tables_of_set(name, rows):
    """Title, quality on generated and on published jets, and cost of the networks of a set."""
    chosen, first = SETS[name], rows[0]
    seen, training = int(first["jets_seen"]), int(first["training_jets"])
    tuned = ", fine-tuned" if chosen.fine_tuned else ""
    yield (
        f"**{chosen.dataset} {chosen.features}{tuned}, generated jets** "
        f"({training:,} to train, {seen:,} seen by every model; "
        f"`python benchmarks/train_zoo.py {name}`):"
    )
    yield of_models(rows, quality_columns(rows))
    if first.get("real_auc"):
        yield "The same networks on 1,000 published jets:"
        yield of_models(rows, quality_columns(rows, "real_"))
    # Cost and int8 are those of the first seed.
    rows = [row | {"seeds": 1, "int8_gain": gain(row)} for row in rows]
    yield of_models(rows, cost_columns(rows))


def gain(row):
    """How many times as fast int8 is as float32, in words where it is not."""
    ratio = float(row["int8_over_fast"])
    return f"{ratio:.2f}" + ("" if ratio > 1 else ", no gain")


def cost_columns(rows):
    """Heading, column and digits of the costs that a set has."""
    columns = [
        ("parameters", "parameters", 0),
        *((f"MFLOP at {n}", f"mflop_{n}", 0) for n in LENGTHS),
        ("weaver [jets/s]", "jets_per_second_weaver", 0),
        ("stock", "jets_per_second_stock", 0),
        ("fast", "jets_per_second_fast", 0),
        ("fast over weaver", "fast_over_weaver", 1),
        ("int8", "jets_per_second_int8", 0),
        ("int8 over fast", "int8_gain", 2),
        ("times smaller", "times_smaller", 2),
        ("accuracy in int8", "int8_accuracy", 3),
        ("AUC", "int8_auc", 4),
    ]
    return [column for column in columns if any(row.get(column[1]) for row in rows)]


def short_table(results):
    """The table of the README: AUC and speed of every model on the first set."""
    rows = next(iter(read_sets(results).values()))
    headings = ["model", "AUC", "jets/s, weaver", "jetzoo", "fast", "int8"]
    body = []
    for row in rows:
        speeds = [row[f"jets_per_second_{kind}"] for kind in ("weaver", "stock", "fast", "int8")]
        speeds = [f"{float(speed):,.0f}" if speed else "" for speed in speeds]
        body.append([f"`{row['model']}`", cell(row, "auc", 4), *speeds])
    return table(headings, body)


def speed_table(results):
    """Inference of ParT: weaver, onnxruntime and the engine."""
    rows = read_csv(results / "speed_cpu.csv")
    sizes = sorted({int(row["batch_size"]) for row in rows})
    found = {(row["variant"], int(row["batch_size"])): row for row in rows}
    headings = ["variant"]
    for size in sizes:
        headings.append("one jet at a time [ms]" if size == 1 else f"batch {size} [jets/s]")
    middle = sizes[len(sizes) // 2]
    headings += [f"share of the peak, batch {middle}", f"peak memory of batch {sizes[-1]} [MiB]"]
    headings += ["largest difference of a logit"]
    body = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = [name]
        for size in sizes:
            row = found[name, size]
            speed, ratio = float(row["jets_per_second"]), float(row["times_weaver_eager"])
            one = f"{1e3 / speed:.1f}"
            cells.append(one if size == 1 else f"{speed:,.0f} ({ratio:.1f}x)")
        share, row = found[name, middle]["share_of_peak"], found[name, sizes[-1]]
        cells.append(f"{float(share):.0%}" if share else "")
        body.append([*cells, f"{float(row['peak_mib']):,.0f}", row["logit_difference"]])
    return table(headings, body)


def training_table(results):
    """A training step of the zoo's networks and of weaver's."""
    rows = read_csv(results / "training_cpu.csv")
    headings = ["network", "variant", "batch size", "jets/s", "over weaver", "peak memory [MiB]"]
    keys = ("variant", "batch_size", "jets_per_second", "times_weaver", "peak_mib")
    body = [[f"`{row['network']}`", *(row[key] for key in keys)] for row in rows]
    return table(headings, body, words=(0, 1))


def int8_table(results):
    """Int8 of ParT by this project and by other libraries."""
    rows = read_csv(results / "quantization_cpu.csv")
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows if row["batch_size"]))
    headings = ["variant", "file [MB]", "accuracy", "AUC", "rejection at 50%"]
    headings += [f"batch {size} [jets/s]" for size in sizes]
    body = []
    for name in dict.fromkeys(row["variant"] for row in rows if row["batch_size"]):
        group = [row for row in rows if row["variant"] == name]
        row = group[0]
        numbers = [row["accuracy"], f"{float(row['auc']):.4f}", f"{float(row['rejection_50']):.1f}"]
        speeds = [f"{float(row['jets_per_second']):,.0f}" for row in group]
        body.append([name, f"{float(row['megabytes']):.2f}", *numbers, *speeds])
    return table(headings, body)


def deploy_table(results):
    """One jet at a time on one thread."""
    headings = ["model", "variant", "p50 [ms]", "p99 [ms]", "over weaver", "file [MB]"]
    headings += ["opens in [ms]", "memory [MiB]"]
    keys = ("model", "variant", "p50_ms", "p99_ms", "times_weaver", "megabytes", "open_ms", "mib")
    rows = read_csv(results / "deploy_cpu.csv")
    return table(headings, [[row[key] for key in keys] for row in rows], words=(0, 1))


def deploy_batches_table(results):
    """Files in onnxruntime, on one thread and on two."""
    rows = read_csv(results / "deploy_batches_cpu.csv")
    threads = list(dict.fromkeys(row["threads"] for row in rows))
    headings = ["model", "what", "variant"]
    headings += [f"{n} thread{'s' * (n != '1')} [ms/jet]" for n in threads]
    body = {}
    for row in rows:
        cell = f"{row['ms_per_jet']} ({row['times_weaver']}x)"
        body.setdefault((row["model"], row["case"], row["variant"]), []).append(cell)
    return table(headings, [[*key, *cells] for key, cells in body.items()], words=(0, 1, 2))


BLOCKS = {
    "zoo tables": zoo_tables,
    "results": short_table,
    "speed": speed_table,
    "deploy": deploy_table,
    "deploy batches": deploy_batches_table,
    "training step": training_table,
    "int8": int8_table,
}


def fill(path, results):
    """Put the tables into a file, between the marks that stand there.

    Parameters
    ----------
    path : Path
    results : Path
        Folder of the CSVs.

    Raises
    ------
    UserError
        If the file has no marks, or some of them are not a pair.
    """
    text = path.read_text()
    found = [name for name in BLOCKS if f"<!-- {name} -->" in text]
    if not found:
        raise UserError(
            f"{path} has no place for a table: <!-- NAME --> and <!-- end of NAME -->, NAME being "
            f"one of {', '.join(BLOCKS)}."
        )
    for name in found:
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
            raise UserError(f"{path} should have {start} and {end} once each, in this order.")
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n\n{BLOCKS[name](results)}\n\n{end}{after}"
    with tables.atomic(path) as partial:
        partial.write_text(text)
