"""weaver as the running program: what it loads without a check, and how it ends at an error."""

import logging
import re
import sys

import torch

from jetzoo import UserError

log = logging.getLogger("weaver")


def check_pretrained(model, args):
    """Refuse weights of ``--load-model-weights`` that do not fit, which weaver only logs.

    Parameters
    ----------
    model : nn.Module
        Has just loaded them.
    args : argparse.Namespace
        Of weaver.

    Raises
    ------
    UserError
        If weights are missing or unexpected that ``--exclude-model-weights`` does not name.
    """
    path, _, prefix = args.load_model_weights.partition(":")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if prefix:
        start = f"{prefix}."
        state = {k.replace(start, "", 1): v for k, v in state.items() if k.startswith(start)}
    excluded = args.exclude_model_weights.split(",") if args.exclude_model_weights else []

    def wanted(names):
        return [n for n in names if not any(re.match(pattern, n) for pattern in excluded)]

    state = {name: state[name] for name in wanted(state)}
    missing, unexpected = model.load_state_dict(state, strict=False)  # as weaver did before
    problems = [
        f"it {what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for what, names in (("lacks", wanted(missing)), ("has in addition", list(unexpected)))
        if names
    ]
    if problems:
        raise UserError(
            f"{path} does not fit the network: {'; '.join(problems)}; name with"
            " --exclude-model-weights what is to start from random weights."
        )
    if hasattr(model, "old") and not any(name.startswith(f"{model.name}.") for name in state):
        log.info("%s is a pretraining: the last layer %s starts anew.", path, model.name)


def weaver_program():
    """The module of weaver's training where it is the running program, else None."""
    main = sys.modules["__main__"]
    if getattr(getattr(main, "__spec__", None), "name", None) == "weaver.train":
        return main
    weaver = sys.modules.get("weaver.train")
    return weaver if weaver and getattr(main, "main", None) is weaver.main else None


def weaver_arguments():
    """Arguments of the command line of weaver, which is the running program."""
    return weaver_program().parser.parse_known_args()[0]


def trains(args):
    """Whether arguments of weaver ask for a training."""
    return not (args.predict or args.export_onnx or args.print) and "train" in args.run_mode


def explain(kind, error, traceback):
    """End with one sentence and exit code 2 at what a user can mend: a ``sys.excepthook``."""
    if issubclass(kind, UserError):
        text = str(error)
    elif kind is RuntimeError and str(error).startswith("Error(s) in loading state_dict"):
        reason = str(error).partition("\n")[2].strip().splitlines()
        text = f"The weights do not fit the network: {reason[0] if reason else error}"
    elif kind is ValueError and _raised_by_jetzoo(traceback):  # such as a backend for GPUs
        text = f"{error}."
    else:
        sys.__excepthook__(kind, error, traceback)
        return
    print(f"jetzoo: {text}", file=sys.stderr)
    raise SystemExit(2)


def _raised_by_jetzoo(traceback):
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "").startswith("jetzoo.")
