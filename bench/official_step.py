"""The training step of the official StyleGAN2 code (stylegan2-ada-pytorch), from a folder outside this repository.

Nothing of that code is here: its licence allows non-commercial use only. The folder is a clone made by the user.
"""

import copy
import sys
from importlib import import_module
from pathlib import Path

import torch

from bench import measure

R1_INTERVAL, PATH_INTERVAL = 16, 4


class OfficialStep:
    """Called with a number, makes the step of that number as the official training loop does by default.

    fp16 in the four largest resolutions, no augmentation, R1 every 16th and path length every 4th step.

    Attributes:
        plugins: which of its CUDA plugins have been built; without them it runs slower code.
    """

    def __init__(self, folder: Path, resolution: int, batch: int):
        sys.path.insert(0, str(folder))
        networks, losses = import_module("training.networks"), import_module("training.loss")
        device, widths = measure.device(), {"channel_base": 16384, "channel_max": 512}
        widths |= {"num_fp16_res": 4, "conv_clamp": 256}
        torch.manual_seed(0)
        self.generator = networks.Generator(
            z_dim=512, c_dim=0, w_dim=512, img_resolution=resolution, img_channels=3, synthesis_kwargs=widths
        ).to(device)
        self.discriminator = networks.Discriminator(
            c_dim=0, img_resolution=resolution, img_channels=3, epilogue_kwargs={"mbstd_group_size": 4}, **widths
        ).to(device)
        self.ema = copy.deepcopy(self.generator).eval()
        self.loss = losses.StyleGAN2Loss(
            device=device, G_mapping=self.generator.mapping, G_synthesis=self.generator.synthesis,
            D=self.discriminator, r1_gamma=0.0002 * resolution**2 / batch, style_mixing_prob=0.9, pl_weight=2,
        )  # fmt: skip
        self.optimizers = {
            "G": torch.optim.Adam(self.generator.parameters(), lr=1e-12, betas=(0.0, 0.99), eps=1e-8),
            "D": torch.optim.Adam(self.discriminator.parameters(), lr=1e-12, betas=(0.0, 0.99), eps=1e-8),
        }
        self.real = torch.rand(batch, 3, resolution, resolution, device=device) * 2 - 1
        self.label = torch.zeros(batch, 0, device=device)
        self(0)
        plugins = {name: import_module(f"torch_utils.ops.{name}") for name in ("bias_act", "upfirdn2d")}
        self.plugins = [name for name, module in plugins.items() if getattr(module, "_plugin", None) is not None]
        print(f"official code: CUDA plugins built: {', '.join(self.plugins) or 'none'}", flush=True)

    def __call__(self, number: int) -> None:
        self._phase("Gmain", 1)
        if number % PATH_INTERVAL == 0:
            self._phase("Greg", PATH_INTERVAL)
        self._phase("Dmain", 1)
        if number % R1_INTERVAL == 0:
            self._phase("Dreg", R1_INTERVAL)
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                average.copy_(parameter.lerp(average, 0.999))

    def _phase(self, name: str, gain: int) -> None:
        optimizer, network = self.optimizers[name[0]], {"G": self.generator, "D": self.discriminator}[name[0]]
        optimizer.zero_grad(set_to_none=True)
        network.requires_grad_(True)
        z = torch.randn(len(self.real), 512, device=self.real.device)
        self.loss.accumulate_gradients(
            phase=name, real_img=self.real, real_c=self.label, gen_z=z, gen_c=self.label, sync=True, gain=gain
        )
        network.requires_grad_(False)
        for parameter in network.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        optimizer.step()
