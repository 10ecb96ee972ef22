"""What takes the place of attention in the other architectures, as matrices of one jet.

Functions find the modules by the names of their classes, because network files are loaded anew.
"""

import torch

from .recorder import modules_named, transformer


def slot_projections(model):
    """Matrices of LinformerParT that mix particles into slots (arXiv 2006.04768, eq. 7).

    Returns
    -------
    list of Tensor, (seq_len, slots)
        One per layer, for the keys; rows are ranks in pT. Empty for another network.
    """
    return [m.proj_k.detach() for m in modules_named(model, "LinformerAttention")]


@torch.inference_mode()
def shared_buckets(model, batch):
    """How often two particles have the same hash in ReformerParT (arXiv 2001.04451, eq. 5).

    Returns
    -------
    list of Tensor, (B, n, n)
        One per layer: the share of heads and rounds. Empty for another network.
    """
    found = []

    def hook(module, args, kwargs, output):
        mask = kwargs["input_mask"]  # (B * H, m)
        hashes = output[2].unflatten(1, (module.n_hashes, -1))  # (B * H, rounds, m)
        same = (hashes[..., :, None] == hashes[..., None, :]).float().mean(1)
        jets = len(batch)
        same = same.unflatten(0, (jets, -1)).mean(1)  # (B, m, m)
        real = mask.unflatten(0, (jets, -1))[:, 0]
        same = same * (real[:, :, None] & real[:, None, :])
        length = batch.mask.shape[1]
        found.append(same[:, :length, :length])

    handles = [
        m.register_forward_hook(hook, with_kwargs=True)
        for m in modules_named(model, "LSHAttention")
    ]
    _run(model, batch, handles)
    return found


@torch.inference_mode()
def implied_attention(model, batch):
    """Attention that the selective scans of MambaParT imply (arXiv 2403.01590, eq. 11).

    The scan is linear in its inputs: y_t = sum over s <= t of alpha_ts u_s for each channel, with
    alpha_ts = sum over the state of C_t exp(A (dt_(s+1) + ... + dt_t)) B_s dt_s.

    Parameters
    ----------
    model : nn.Module
    batch : Batch
        Of one jet.

    Returns
    -------
    list of Tensor, (n, n)
        One per layer: the mean of |alpha| over channels, of both directions where there are two.
        Empty for another network.
    """
    core = transformer(model)
    found = []
    for block in core.blocks if core is not None else ():
        scans = modules_named(block.attn, "Mamba")
        if not scans:
            return []
        alphas = [_ScanInputs(scan) for scan in scans]
        found.append(alphas)
    _run(model, batch, [handle for scans in found for scan in scans for handle in scan.handles])
    matrices = []
    for scans in found:
        down, *up = (scan.alpha().abs().mean(0) for scan in scans)  # (n, n)
        matrices.append(down + up[0].flip(0, 1) if up else down)
    return matrices


class _ScanInputs:
    """What the scan of a ``Mamba`` module got for the tokens of one jet."""

    def __init__(self, scan):
        self.scan = scan
        self.handles = [
            scan.x_proj.register_forward_hook(self._mixing),
            scan.dt_proj.register_forward_hook(self._steps),
        ]

    def _mixing(self, module, args, output):
        _, self.B, self.C = output.float().split(self.scan.sizes, dim=-1)  # (n, S)

    def _steps(self, module, args, output):
        self.dt = torch.nn.functional.softplus(output.float())  # (n, D)

    def alpha(self):
        """(D, n, n)."""
        time = self.dt.cumsum(0).t()  # (D, n)
        causal = torch.ones(len(self.B), len(self.B), dtype=torch.bool, device=time.device).tril()
        elapsed = (time[:, :, None] - time[:, None, :]).masked_fill(~causal, 0)  # (D, n, n)
        A = -self.scan.A_log.float().exp()  # (D, S)
        alpha = torch.zeros_like(elapsed)
        for s in range(A.shape[1]):
            decay = torch.exp(A[:, s, None, None] * elapsed)
            alpha += decay * self.C[:, s, None] * self.B[:, s]
        return (alpha * self.dt.t()[:, None, :]).masked_fill(~causal, 0)


def _run(model, batch, handles):
    try:
        if handles:
            model(*batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
