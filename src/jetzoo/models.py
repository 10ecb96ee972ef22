"""The trained weights of `models/`: cards, checksums, and the published weights.

``models/models.json`` says of each file how it was trained and what it reaches, and
``models/README.md`` is written from it. Published weights go to ``models/published/``, so that they
never take the place of one of the project's.
"""

import hashlib
import io
import json
from pathlib import Path

import torch

from jetzoo import UserError, checkpoint, repository, tables
from jetzoo.style import NAMES

# The same files on two branches of their history; the git blob ids below decide.
PUBLISHED_URLS = tuple(
    f"https://github.com/jet-universe/particle_transformer/raw/{commit}/models"
    for commit in ("2925bdb", "main")
)
PUBLISHED = {
    "ParT_full": "cf510276bb5616caf87adace4e05eafab4b6c762",
    "ParT_kin": "70a82e78a7dc54601d4b19c089969fd917e397b9",
    "ParT_kinpid": "f4bf560aed152f0b2acd37f60be1323ea84039f8",
    "ParticleNet_full": "eab18fffeef62001aa08758ff954873b414ce3e4",
    "ParticleNet_kin": "e3577bd272824e2470e8a12c9b7fe314546da76f",
    "ParticleNet_kinpid": "83075a3aed3e5d7e29fe1a53b3d9f90fec13e40c",
}

# What the published files call a network; ours are named alike, for the train scripts.
PUBLISHED_AS = {"PN": "ParticleNet", "PN-FineTune": "ParticleNet-FineTune"}

CONFIGS = {"JetClass": "JetClass", "QuarkGluon": "qg", "TopLandscape": "top"}

HEADER = """\
# Trained weights

Written by `jetzoo models --add RUN` from `models.json`; do not edit. `jetzoo models` compares every
file with its checksum, and

```python
tagger = jetzoo.load("{example}")
```

loads one with its network and data config. All were trained on **generated** jets, with budgets
that two CPU cores manage in minutes to hours, a small part of the published trainings. For physics
with the published data sets train there, or fetch the published weights of ParT and ParticleNet
(`jetzoo models --fetch NAME`). The files hold half-precision numbers, which halves their size (a
ParT has 4.3 MB instead of 8.6 MB); a network computes in float32 as ever. The metrics are those of
the training's test: single-precision weights, test jets of the same generated set.
"""


def card_name(record):
    """Name of a model, without .pt: those of JetClass as the train scripts expect them.

    Parameters
    ----------
    record : dict
        With ``model``, ``dataset`` and ``features``.

    Returns
    -------
    str
        Such as ``ParticleNet_kin`` and ``ParT_QuarkGluon_kin``.
    """
    network = PUBLISHED_AS.get(record["model"], record["model"])
    dataset = "" if record["dataset"] == "JetClass" else f"_{record['dataset']}"
    return f"{network}{dataset}_{record['features']}"


def read_cards():
    """The cards of ``models/``.

    Returns
    -------
    dict of str to dict
        By name of the model; empty where there is no ``models.json``.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    path = repository.models() / "models.json"
    try:
        cards = json.loads(path.read_text())
        for card in cards.values():
            texts = (card["network"], card["data_config"], card["sha256"])
            numbers = (card["bytes"], card["metrics"]["auc"])
            if not all(isinstance(x, str) for x in texts):
                raise TypeError("a name is no text")
            if not all(isinstance(x, (int, float)) for x in numbers):
                raise TypeError("a size or an AUC is no number")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {repository.reason(error)}.") from error
    return cards


def add(run):
    """Copy the weights of a finished run into ``models/``, with a card.

    Parameters
    ----------
    run : str or Path
        Folder that ``benchmarks/train_zoo.py`` wrote: ``run.json``, ``metrics.json``, ``net.pt``.

    Returns
    -------
    Path
        The file; one of its name is replaced.

    Raises
    ------
    UserError
        If the run is not there or not complete.
    """
    run = Path(run)
    try:
        record = json.loads((run / "run.json").read_text())
        metrics = json.loads((run / "metrics.json").read_text())
        state = checkpoint.read(run / "net.pt")
        name, card = card_name(record), _card(record, metrics)
        content = io.BytesIO()
        torch.save({key: half(value) for key, value in state.items()}, content)
    except OSError as error:
        raise UserError(f"{run} is not a finished run: there is no {error.filename}.") from error
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(f"{run} is damaged: {repository.reason(error)}.") from error
    path = _own_folder() / f"{name}.pt"
    with tables.atomic(path) as partial:
        partial.write_bytes(content.getbuffer())
    card |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    cards = dict(sorted({**read_cards(), name: card}.items()))
    with tables.atomic(path.with_name("models.json")) as partial:
        partial.write_text(json.dumps(cards, indent=1) + "\n")
    with tables.atomic(path.with_name("README.md")) as partial:
        partial.write_text(render(cards))
    return path


def _card(record, metrics):
    """The card of a run, but for its file."""
    return {
        "network": record["model"],
        "data_config": f"{record['dataset']}/{CONFIGS[record['dataset']]}_{record['features']}",
        **{key: record[key] for key in ("seed", "command", "jets", "budget", "seconds", "machine")},
        "metrics": {key: metrics[key] for key in ("accuracy", "accuracy_error", "auc")},
        "rejections": metrics["rejections"],
    }


def _own_folder():
    if repository.checkout() is None:
        raise UserError("Models are added to a checkout of the project, not to an installed one.")
    return tables.writable_folder(repository.models())


def half(tensor):
    """A float32 tensor in float16, unless its numbers do not fit there."""
    small = tensor.half() if tensor.dtype == torch.float32 else tensor
    return small if small.isfinite().all() else tensor


def render(cards):
    """The text of ``models/README.md``.

    Parameters
    ----------
    cards : dict of str to dict

    Returns
    -------
    str
    """
    blocks = [HEADER.format(example=next(iter(cards)))]
    for name, card in cards.items():
        jets, budget, metrics = card["jets"], card["budget"], card["metrics"]
        seen = budget["epochs"] * budget["samples"]
        rejections = ", ".join(
            f"{rejection_text(row)} {against_text(row)}" for row in card["rejections"]
        )
        lines = {
            "Network, data config": f"`{card['network']}`, `{card['data_config']}`",
            "Data": f"generated; {jets['train']:,} jets to train, {jets['val']:,} to validate, "
            f"{jets['test']:,} to test",
            "Training": f"seed {card['seed']}; {seen:,} jets seen in {budget['epochs']} epochs, "
            f"batch size {budget['batch_size']}; {card['seconds'] / 60:.1f} minutes on "
            f"{card['machine']['device']}, the test included",
            "Command": f"`{card['command']}`",
            "Accuracy, AUC": f"{metrics['accuracy']:.4f} ± {metrics['accuracy_error']:.4f}, "
            f"{metrics['auc']:.4f}",
            "Rejection": rejections,
            "File": f"{card['bytes'] / 1e6:.1f} MB, sha256 `{card['sha256']}`",
        }
        rows = "\n".join(f"| {key} | {value} |" for key, value in lines.items())
        blocks.append(f"## {name}\n\n| | |\n| --- | --- |\n{rows}\n")
    return "\n".join(blocks)


def rejection_text(row):
    """``27.6 ± 5.0``, or the lower limit where no background jet passes."""
    if row["rejection"] is None:
        return f"> {row['lower_limit']:.0f}"
    digits = 1 if row["rejection"] < 100 else 0
    return f"{row['rejection']:.{digits}f} ± {row['error']:.{digits}f}"


def against_text(row):
    """``(quark against gluon at 50%)``."""
    signal, background = (
        name.removeprefix("label_") if name.startswith("label_") else NAMES[name]
        for name in (row["signal"], row["background"])
    )
    return f"({signal} against {background} at {100 * row['signal_efficiency']:g}%)"


def is_card(name):
    """Whether :func:`find` knows a model by this name."""
    return name in read_cards() or name.removeprefix("published/") in PUBLISHED


def status(name, card):
    """Whether a file is what its card says.

    Returns
    -------
    {'ok', 'missing', 'damaged'}
    """
    path = repository.models() / f"{name}.pt"
    if not path.is_file():
        return "missing"
    return "ok" if sha256(path) == card["sha256"] else "damaged"


def find(name):
    """What :func:`jetzoo.load` needs to load a model by its name.

    Parameters
    ----------
    name : str
        Of a card, or ``published/NAME`` for fetched weights.

    Returns
    -------
    network : str
    checkpoint : Path
    data_config : str

    Raises
    ------
    UserError
        If there is no such model, or its file is missing or damaged.
    """
    published, cards = name.removeprefix("published/"), read_cards()
    if name != published and published in PUBLISHED:
        path = repository.published_models() / f"{published}.pt"
        if not path.is_file():
            raise UserError(f"There is no {path}: jetzoo models --fetch {published} downloads it.")
        network, data_config = _published(published)
        return network, path, data_config
    if name not in cards:
        raise UserError(
            f"There is no model {name!r} without a checkpoint; models/ has: "
            f"{', '.join(cards) or 'none'}."
        )
    if (found := status(name, cards[name])) != "ok":
        raise UserError(f"{repository.models() / name}.pt is {found}; git restores it.")
    return cards[name]["network"], repository.models() / f"{name}.pt", cards[name]["data_config"]


def fetch(name):
    """Download published weights, unless they are there; resumable, checked by their blob id.

    Parameters
    ----------
    name : str
        Of ``PUBLISHED``.

    Returns
    -------
    Path
        ``NAME.pt`` in :func:`jetzoo.repository.published_models`, state dict with keys ``mod.*``.

    Raises
    ------
    UserError
        If the name is unknown, the server does not answer, or the checksum is wrong.
    """
    from jetzoo import datasets

    if name not in PUBLISHED:
        raise UserError(f"There is no published {name!r}; published are {', '.join(PUBLISHED)}.")
    path = tables.writable_folder(repository.published_models()) / f"{name}.pt"
    datasets.fetch(
        path, [f"{url}/{name}.pt" for url in PUBLISHED_URLS], PUBLISHED[name], git_blob_id
    )
    return path


def git_blob_id(path):
    """The id that git gives to the content of a file."""
    data = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def sha256(path):
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def table():
    """All models for the terminal, and the names of those that are missing or damaged.

    Returns
    -------
    rich.table.Table
    bad : list of str
    """
    from rich.table import Table

    result, bad = Table("model", "AUC", "MB", "file"), []
    for name, card in read_cards().items():
        state = status(name, card)
        if state != "ok":
            bad.append(f"{name}.pt ({state})")
        auc, size = f"{card['metrics']['auc']:.4f}", f"{card['bytes'] / 1e6:.1f}"
        result.add_row(name, auc, size, state)
    for name, blob in PUBLISHED.items():
        path = repository.published_models() / f"{name}.pt"
        state = "to fetch"
        if path.is_file():
            state = "ok" if git_blob_id(path) == blob else "damaged"
            if state == "damaged":
                bad.append(f"published/{path.name} (damaged)")
        result.add_row(f"published/{name}", "", "", state)
    return result, bad


def _published(name):
    """Network and data config of published weights."""
    network, _, features = name.partition("_")
    return {"ParticleNet": "PN"}.get(network, network), f"JetClass/JetClass_{features}"
