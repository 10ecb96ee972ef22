"""Networks to test with: those of `networks/` by name, small ones, and one written to a file."""

import copy

import torch
from weaver.utils.data.config import DataConfig

from jetzoo import data_config, repository
from jetzoo.native import compilation

CONFIG = repository.home() / "data" / "QuarkGluon" / "qg_kin.yaml"
NETWORKS = sorted(repository.networks())
# Options that change what is computed.
VARIANTS = {
    "ParT plain": {"pair_bias": False},
    "LinformerParT projected": {"pair_bias": "projected"},
    "MambaParT bidirectional": {"bidirectional": True},
}

UNBIASED = {"embed_dims": (32, 64, 32), "num_heads": 4, "num_layers": 2}
SMALL = {**UNBIASED, "pair_embed_dims": (16, 16)}
GRAPH = {"conv_params": ((8, (16, 16)), (8, (24, 24)))}
SIZES = {
    **dict.fromkeys(("ParT", "ParT-FineTune", "LinformerParT"), SMALL),
    **dict.fromkeys(("ReformerParT", "MambaParT"), UNBIASED),
    **dict.fromkeys(("PN", "PN-FineTune"), GRAPH),
}

LINEAR = """
import torch
from jetzoo import plugin


class Mean(torch.nn.Module):
    '''A linear classifier of the mean particle.'''

    def __init__(self, input_dim, num_classes, *, scale=1.0):
        super().__init__()
        self.fc = torch.nn.Linear(input_dim, num_classes)
        self.scale = scale

    def forward(self, points, features, lorentz_vectors, mask):
        return self.fc(self.scale * (features * mask).sum(2) / mask.sum(2).clamp(min=1))


def get_model(data_config, **kwargs):
    return plugin.build(Mean, data_config, **kwargs)


get_loss = plugin.get_loss
"""


def build(name, config=None, **options):
    """A network in eval mode, with statistics of the batch norms that do not hide mistakes.

    Of the published size but for `options`; a name of `VARIANTS` has its options, too.
    """
    torch.manual_seed(1)
    options = {**VARIANTS.get(name, {}), **options}
    module = repository.network_module(name.split()[0])
    model, _ = module.get_model(config or DataConfig.load(CONFIG), **options)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def stir(model):
    """Change the parameters that begin as ones and zeros, which hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def rounded(model, dtype=torch.bfloat16):
    """A copy whose matrices are rounded to half precision: the least that computing in it costs."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.to(dtype))
    return twin


def write_network(folder):
    """A small network file and its checkpoint."""
    path, checkpoint = folder / "Mean.py", folder / "net_best_epoch_state.pt"
    path.write_text(LINEAR)
    torch.manual_seed(0)
    module = repository.network_module(path)
    model, _ = module.get_model(data_config.read("QuarkGluon/qg_kin"))
    torch.save(model.state_dict(), checkpoint)
    return path, checkpoint


def without_kernels(patch, *names):
    """Let there be no kernels in C++ (by default none at all), as without a compiler."""
    for name in names or compilation.LIBRARIES:
        patch.setitem(compilation._state.libraries, name, None)
