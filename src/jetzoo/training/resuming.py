"""What a resumed training needs so that it goes on as if it had never been stopped."""

import itertools
import logging
import random
import warnings

import numpy as np
import torch
from tqdm import tqdm
from weaver.utils.nn.optimizer.lookahead import Lookahead

log = logging.getLogger("weaver")

# What the order of the jets depends on, and what else decides how a training goes on.
LOADING = (
    "data_config", "data_train", "data_val", "data_fraction", "file_fraction", "train_val_split",
    "fetch_step", "fetch_by_files", "num_workers", "in_memory", "in_memory_val",
    "steps_per_epoch", "steps_per_epoch_val", "batch_size", "batch_size_val",
)  # fmt: skip
SETTINGS = ("network_option", "optimizer", "optimizer_option", *LOADING)


def changed_settings(args, before):
    """Names of the settings that are not those of before the stop; a line of the log says which."""
    changed = [name for name in SETTINGS if before[name] != getattr(args, name)]
    if changed:
        texts = [f"{name} {getattr(args, name)} instead of {before[name]}" for name in changed]
        log.warning("Resumed with other settings: %s", "; ".join(texts))
    return changed


def random_states():
    """All random states of this process, of tensors and numbers, for :func:`set_random_states`."""
    _, numbers, *rest = np.random.get_state()  # noqa: NPY002 - what weaver shuffles with
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(numbers.astype("int64")), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_states(states):
    """Put back what :func:`random_states` gave."""
    numbers, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state(("MT19937", numbers.numpy().astype("uint32"), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def lookahead_state(opt):
    """What weaver's Ranger leaves out of its state dict; None for another optimizer."""
    if not isinstance(opt, Lookahead):
        return None
    slow = [opt.state[p]["cached_params"] for group in opt.param_groups for p in group["params"]]
    return {"step_counter": opt.step_counter, "slow_weights": slow}


def restore_lookahead(opt, found):
    """Put back what :func:`lookahead_state` gave."""
    if not isinstance(opt, Lookahead) or found is None:
        return
    opt.step_counter = found["step_counter"]
    parameters = [p for group in opt.param_groups for p in group["params"]]
    for parameter, slow in zip(parameters, found["slow_weights"], strict=True):
        opt.state[parameter]["cached_params"].copy_(slow)


def rewind(scheduler, args):
    """Bring the learning rates to where they stood, by walking the schedule from its beginning.

    weaver takes the last rates from the file of the optimizer, and then PyTorch takes the step from
    the epoch before once more: a decay is applied twice, or a schedule by steps is an epoch late.
    """
    if scheduler is None:
        return
    steps = args.load_epoch + 1
    if getattr(scheduler, "_update_per_step", False):
        steps *= args.steps_per_epoch
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler.last_epoch = -1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch misses the steps of the optimizer in between
        for _ in range(steps + 1):
            scheduler.step()


def loaders(args, weaver):
    """Both loaders: name, loader, batches of an epoch (None: all), whether it keeps the jets."""
    return (
        ("train", weaver["train_loader"], args.steps_per_epoch, args.in_memory),
        ("val", weaver["val_loader"], args.steps_per_epoch_val, args.in_memory_val),
    )


def can_replay(args, weaver, changed):
    """Whether the order of the jets can be found again without reading the files again.

    Either they are in memory, or every epoch reads them anew as the random states of this process
    say. Processes of their own that read on and on are somewhere in the files.
    """
    return set(changed).isdisjoint(LOADING) and all(
        in_memory or (steps is None and loader.num_workers == 0)
        for _, loader, steps, in_memory in loaders(args, weaver)
    )


def replay(first_epoch, starts, args, weaver):
    """Let the loaders hand out the jets of the finished epochs again.

    Those that are in memory are shuffled again and again: the order of one epoch follows from that
    of the epoch before.

    Parameters
    ----------
    first_epoch : int
        In which the loaders were first used.
    starts : dict of str to dict
        Random states when they were.
    args : argparse.Namespace
        Of weaver.
    weaver : dict
        Its local variables.
    """
    kept = [row for row in loaders(args, weaver) if row[-1]]
    epochs = range(first_epoch, args.load_epoch + 1) if kept else ()
    for epoch in tqdm(epochs, desc="Order of the jets, epochs", disable=not kept):
        for kind, loader, steps, _ in kept:
            if epoch == first_epoch:
                set_random_states(starts[kind])
            for _ in itertools.islice(loader, steps):
                pass
