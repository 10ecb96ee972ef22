"""The command `get_datasets.py`."""

import argparse
import re
import shlex
import sys
from pathlib import Path

from jetzoo import UserError, repository
from jetzoo.datasets.archives import download
from jetzoo.datasets.catalogue import CATALOGUE, SPLITS
from jetzoo.datasets.conversion import convert
from jetzoo.datasets.folder import at_work, reason, write_text

DESCRIPTION = """\
Get a data set and tell the train scripts where it is (env.local.sh, which env.sh reads; a
DATADIR_* variable of your environment wins over it). Without --simulate, --sample or --convert the
published archives are downloaded: resumable, checked by md5, and never half unpacked. Running the
same command again continues, or finds everything in place and downloads nothing."""

EXAMPLES = """\
examples:
  ./get_datasets.py QuarkGluon                       published jets into ./datasets/QuarkGluon
  ./get_datasets.py JetClass -d /data --splits test  only the 20M test jets
  ./get_datasets.py TopLandscape --mirror https://example.org/tars
                                                     look for TopLandscape.tar there first
  ./get_datasets.py QuarkGluon --sample              the small sample of this repository
  ./get_datasets.py QuarkGluon --simulate 100000 --seed 7 -j 8 -d sim
                                                     new jets with Pythia 8 and FastJet; for
                                                     the other two sets with a detector, too
  ./get_datasets.py QuarkGluon --convert QG_jets*.npz
  ./get_datasets.py TopLandscape --convert train.h5 val.h5 test.h5
                                                     from the original releases on Zenodo,
                                                     records 3164691 and 2603256

An archive that you downloaded yourself is used when it lies in DIR under its published name.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message} (-h explains)")


def _parser():
    files = (f"  DIR/{row.name}/{row.files}" for row in CATALOGUE.values())
    parser = _Parser(
        prog="get_datasets.py",
        description=DESCRIPTION,
        epilog="\n".join([EXAMPLES, "files:", *files]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    in_parts = ", ".join(row.name for row in CATALOGUE.values() if row.has_splits)
    add = parser.add_argument
    add("dataset", choices=CATALOGUE, metavar="DATASET", help=", ".join(CATALOGUE))
    add("-d", "--dir", default="datasets", type=Path, help="base folder (default: ./datasets)")
    add("--splits", nargs="+", choices=SPLITS, help=f"{in_parts}: download only these")
    add("--mirror", action="append", metavar="URL", help="another server's folder; repeatable")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--sample", action="store_true", help="use the sample of this repository")
    way.add_argument("--simulate", type=_count, metavar="N", help="simulate N jets")
    way.add_argument("--convert", nargs="+", metavar="SRC", help="convert the original release")
    add("--seed", type=int, help="seed of --simulate (default: 1)")
    where = parser.add_mutually_exclusive_group()
    add = where.add_argument
    add("-j", "--jobs", type=_count, help="processes of --simulate (default: 1)")
    add("--workers", type=_count, metavar="N", help="as -j, and those that end are replaced")
    add("--dask", metavar="ADDRESS", help="a cluster of dask.distributed that simulates")
    return parser


def _count(text):
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _check(args):
    """Raise a `UserError` where options do not go together."""
    only = (args.seed, args.jobs, args.workers, args.dask)
    if args.simulate is None and any(value is not None for value in only):
        raise UserError("--seed, --jobs, --workers and --dask belong to --simulate")
    local = args.simulate is not None or args.sample or args.convert
    if local and (args.splits or args.mirror):
        raise UserError("--splits and --mirror belong to a download")
    if args.splits and not CATALOGUE[args.dataset].has_splits:
        in_parts = ", ".join(row.name for row in CATALOGUE.values() if row.has_splits)
        raise UserError(f"--splits is for {in_parts}: {args.dataset} is published in one archive")
    path = str(args.dir.absolute())
    if "\n" in path:
        raise UserError("a folder with a line break in its name cannot go into env.local.sh")
    if any("\ud800" <= letter <= "\udfff" for letter in path):
        raise UserError(f"the name of the folder {path!r} is not UTF-8")


def _get(args):
    """Get the data set in the way that was asked for, and return its folder."""
    if args.sample:
        folder = repository.samples(args.dataset)
        if not folder.is_dir():
            raise UserError(f"there is no sample of {args.dataset} in {folder.parent}")
        return folder
    if args.simulate is not None:
        from jetzoo.datasets.simulation import generate  # takes seconds to import

        folder = args.dir / args.dataset
        seed = 1 if args.seed is None else args.seed
        where = {"jobs": args.jobs or 1, "workers": args.workers, "dask": args.dask}
        generate(args.dataset, args.simulate, folder, seed=seed, **where)
        return folder
    if args.convert:
        return convert(args.dataset, args.convert, args.dir)
    return download(args.dataset, args.dir, args.splits or SPLITS, args.mirror or ())


def set_datadir(dataset, folder, root):
    """Write the path of a data set to `env.local.sh`, which `env.sh` sources.

    Parameters
    ----------
    dataset : str
    folder : path-like
    root : path-like or None
        The folder of `env.sh`. Other lines of `env.local.sh` stay. Without a checkout (None) the
        line is printed for the user's own shell.
    """
    variable = CATALOGUE[dataset].variable
    value = shlex.quote(str(Path(folder).resolve()))
    if root is None:
        print(
            f"the jets are there; a script that reads {variable} finds them after\n"
            f"  export {variable}={value}"
        )
        return
    path = Path(root) / "env.local.sh"
    with at_work(path.parent, ".env.local.sh.lock", wait=True):
        text = path.read_text(errors="surrogateescape") if path.exists() else ""
        lines = text.removesuffix("\n").split("\n") if text else []
        mine = re.compile(rf"\s*(export\s+)?{variable}=")
        kept = [line for line in lines if not mine.match(line)]
        write_text(path, "\n".join([*kept, f"export {variable}={value}", ""]))
    print(f"{variable}={value} in {path}")


def main(argv=None, root=None):
    """Run `get_datasets.py`.

    Parameters
    ----------
    argv : list of str, optional
        The arguments; those of the process by default.
    root : Path, optional
        The checkout, whose `env.local.sh` is written; by default the one of this package, if it
        stands in one.

    Returns
    -------
    int
        The exit code: 0, or 2 after one sentence on stderr.
    """
    try:
        args = _parser().parse_args(argv)
        _check(args)
        set_datadir(args.dataset, _get(args), root or repository.checkout())
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = reason(error)
    except KeyboardInterrupt:
        message = "interrupted: nothing is half-written, run the same command again"
    else:
        return 0
    print(f"get_datasets.py: {message}", file=sys.stderr)
    return 2
