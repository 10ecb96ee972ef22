"""What is profiled: a network called on a batch of jets, or trained on it for one step."""

import contextlib

import torch

from ..training.regression import log_cosh

# Names of what belongs to no module.
STEP, NETWORK = "(step)", "(network)"
LOSS, AUTOGRAD, OPTIMIZER = "(loss)", "(autograd)", "(optimizer)"
PARTS = (LOSS, AUTOGRAD, OPTIMIZER)


class Step:
    """A network with the jets that it is called on, or trained on for one step.

    Parameters
    ----------
    network : nn.Module
        Called as ``network(*inputs)``.
    inputs : sequence of Tensor
        On the device of the network.
    labels : Tensor of int, (B,), or of float, (B, num_targets), optional
        With them it is a training step, with the optimiser of the training scripts.
    bf16 : bool
        Autocast to bfloat16.
    """

    def __init__(self, network, inputs, labels=None, bf16=False):
        from weaver.utils.nn.optimizer.ranger import Ranger

        self.network = network
        self.inputs = inputs
        self.labels = labels
        self.device = inputs[0].device
        self.bf16 = bf16
        self.trains = labels is not None
        is_regression = self.trains and labels.is_floating_point()
        self.loss = log_cosh if is_regression else torch.nn.CrossEntropyLoss()
        self.optimizer = Ranger(network.parameters(), lr=1e-5) if self.trains else None

    def __call__(self, watch=None):
        """Run the step once; a :class:`jetzoo.profiling.watch.Watch` is told what is no module."""
        self.network.train(self.trains)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        if not self.trains:
            with torch.no_grad(), autocast:
                self.network(*self.inputs)
            return
        watch = watch or contextlib.nullcontext()
        part = getattr(watch, "part", lambda name: contextlib.nullcontext())
        with part(OPTIMIZER):
            self.optimizer.zero_grad()
        with autocast:
            logits = self.network(*self.inputs)
        with part(LOSS):
            loss = self.loss(logits.float(), self.labels)
        if hasattr(watch, "attach"):
            watch.attach(loss)
        with part(AUTOGRAD):
            loss.backward()
        with part(OPTIMIZER):
            self.optimizer.step()


@contextlib.contextmanager
def single_thread():
    """One thread for PyTorch, so that engines with threads of their own work in this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
