"""Commands of `jetzoo` that look into a trained network."""

from jetzoo.arguments import (
    JETS,
    add_tagger,
    default_folder,
    input_files,
    jet_selection,
    load_tagger,
    network_options,
    positive_integer,
    share,
)


def add_attention(parser):
    _add_jets(parser, "all; those with indices are drawn", "attention", subjets=True)
    parser.add_argument(
        "--ablate", action="store_true", help="measure what is lost without some of the attention"
    )


def run_attention(args):
    from jetzoo import interpret

    options = {"with_ablations": args.ablate, "num_subjets": args.subjets}
    _write_report(args, "attention", interpret.explain, **options)


def add_explore(parser):
    _add_jets(parser, "50 at equal distances", subjets=True)
    parser.add_argument("--out", required=True, metavar="FILE", help="the page, .html")


def run_explore(args):
    from jetzoo import interpret, tables
    from jetzoo import page as pages

    out = tables.check_output(args.out, (*args.data, *input_files(args)), ".html")
    tagger = load_tagger(args)
    page, notes = interpret.explore(
        tagger, args.network, args.data, jets=args.jets, num_subjets=args.subjets
    )
    pages.write(out.parent, {out.name: page})
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {out}, {len(page) / 1e6:.1f} MB; open it in a browser")


def add_probe(parser):
    _add_jets(parser, "all", "probes")


def run_probe(args):
    from jetzoo import interpret

    _write_report(args, "probes", interpret.probe)


def add_circuit(parser):
    _add_jets(parser, "1000 at equal distances", "circuit")
    text = "share of the AUC over 1/2 that the heads of the circuit keep (default: 0.95)"
    parser.add_argument("--keep", type=share, default=0.95, metavar="SHARE", help=text)


def run_circuit(args):
    from jetzoo import interpret

    _write_report(args, "circuit", interpret.circuit, kept=args.keep)


def add_prune(parser):
    add_tagger(parser)
    for name, text in (
        ("--train", "labelled jets to fine-tune on; they are read into memory"),
        ("--val", "labelled jets that decide which layers can go"),
        ("--data", "labelled jets to compare the networks on, which take no part in the choice"),
    ):
        parser.add_argument(name, nargs="+", required=True, metavar="FILE", help=text)
    text = "of each fine-tuning (default: 3)"
    parser.add_argument("--epochs", type=positive_integer, default=3, metavar="N", help=text)
    text = "default: the folder pruned beside the checkpoint, or here for a model card"
    parser.add_argument("--out", metavar="DIR", help=text)


def run_prune(args):
    from jetzoo import interpret, tables

    folder = default_folder(args, "pruned")
    tables.check_folder(folder)
    files = (args.train, args.val, args.data)
    options = {"epochs": args.epochs, **network_options(args)}
    report = interpret.prune(load_tagger(args), args.network, args.data_config, *files, **options)
    _show_report(report, folder)
    print(f"wrote {folder}")


def _add_jets(parser, default, folder=None, subjets=False):
    """Arguments of a command that looks into a network at some jets."""
    add_tagger(parser)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help=JETS)
    text = "the first N jets, or the jets with these indices; '7,' is jet 7 alone"
    parser.add_argument(
        "--jets", type=jet_selection, metavar="N|I,J,...", help=f"{text} (default: {default})"
    )
    if subjets:
        text = "default: 3 for t -> bqq', 2 for the others"
        parser.add_argument("--subjets", type=int, choices=(2, 3), help=text)
    if folder is not None:
        text = f"default: the folder {folder} beside the checkpoint, or here for a model card"
        parser.add_argument("--out", metavar="DIR", help=text)
        parser.add_argument("--batch-size", type=positive_integer, default=64, metavar="N")


def _show_report(report, folder):
    """Write a report to a folder, and print its tables and notes."""
    from rich.console import Console

    report.write(folder)
    Console().print(*report.tables())
    for note in report.notes:
        print(f"note: {note}")


def _write_report(args, name, find, **options):
    """Find something out about a network, write it to a folder, and print it."""
    from jetzoo import tables

    folder = default_folder(args, name)
    tables.check_folder(folder)
    options |= {"jets": args.jets, "batch_size": args.batch_size, **network_options(args)}
    report = find(load_tagger(args), args.network, args.data, **options)
    _show_report(report, folder)
    print(f"wrote {folder / 'index.html'}, and figures and tables beside it")
