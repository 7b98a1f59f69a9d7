"""Parts of style-based generators: mapping network, style mixing, truncation, noise (Karras et al. 2019)."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.effective import shares_kernels
from fastgan.layers import EqualizedLinear
from fastgan.models.labels import concat_label
from fastgan.ops.arithmetic import update_average


def dense_layers(sizes: Sequence[int], lr_multiplier: float) -> nn.ModuleList:
    """Layers of a mapping network, with the given numbers of features before, between and after them."""
    return nn.ModuleList(
        EqualizedLinear(i, o, act="lrelu", lr_multiplier=lr_multiplier) for i, o in itertools.pairwise(sizes)
    )


class MappingNetwork(nn.Module):
    """Mapping network: z [N, z_dim], label [N] to w [N, w_dim]. Keeps a running mean of w for the truncation trick.

    Several `batches` may be concatenated, which enter the running mean one after the other.
    """

    w_avg: Tensor

    def __init__(self, config):
        super().__init__()
        width = config.style_dim
        self.embed = EqualizedLinear(config.num_classes, width) if config.num_classes else None
        sizes = [config.z_dim + (width if config.num_classes else 0)] + [width] * config.mapping_layers
        self.layers = dense_layers(sizes, config.mapping_lr)
        self.register_buffer("w_avg", torch.zeros(width))
        self.decay = config.w_avg_decay

    @shares_kernels
    def forward(self, z: Tensor, label: Tensor | None = None, *, batches: int = 1) -> Tensor:
        x = concat_label(z, self.embed, label)
        for layer in self.layers:
            x = layer(x)
        if self.training and torch.is_grad_enabled():
            for mean in x.detach().unflatten(0, (batches, -1)).mean(1, dtype=self.w_avg.dtype):
                update_average(self.w_avg, mean, 1 - self.decay)
        return x


class StyleBasedGenerator(nn.Module):
    """Base class of generators in two halves: `styles` computes a w for every layer, `synthesize` the image.

    Subclasses define `mapping`, `num_ws`, `noise_resolutions` and `synthesize`.
    """

    supports = frozenset({"style_mixing", "truncation", "noise"})
    mapping: MappingNetwork
    num_ws: int
    noise_resolutions: list[int]  # one entry a layer with noise
    truncated_layers: int | None = None  # default number of truncated layers, from the first; None for all
    style_offset: Tensor | None = None  # [num_ws, w_dim], added to the styles of all images; `fastgan.editing` sets it

    @property
    def w_dim(self) -> int:
        """Size of a w."""
        return len(self.mapping.w_avg)

    @property
    def noisy_layers(self) -> list[Any]:
        """Layers with noise at the current stage of growth; the i-th reads `ws[:, i]`, and its map is `noise_const`."""
        return []

    @property
    def ws_in_use(self) -> int:
        """Number of ws that are read at the current stage of progressive growing."""
        return self.num_ws

    def forward(
        self,
        z: Tensor,
        label: Tensor | None = None,
        *,
        style_mixing: float = 0.0,
        truncation: float | Tensor = 1.0,
        truncation_layers: int | None = None,
        noise: str | Sequence[str] = "random",
    ) -> Tensor:
        """`synthesize(styles(z, label))`, with their arguments."""
        ws = self.styles(
            z, label, style_mixing=style_mixing, truncation=truncation, truncation_layers=truncation_layers
        )
        return self.synthesize(ws, noise=noise)

    def styles(
        self,
        z: Tensor,
        label: Tensor | None = None,
        *,
        style_mixing: float = 0.0,
        truncation: float | Tensor = 1.0,
        truncation_layers: int | None = None,
    ) -> Tensor:
        """A w for every layer, [N, num_ws, w_dim].

        Args:
            z: [N, z_dim] from N(0, 1). Or ws [N, num_ws, w_dim], which are only truncated; then there is no label.
            label: [N] int64 class indices, for a conditional generator.
            style_mixing: probability that a sample's later layers use the w of a second latent.
            truncation: psi, `w_avg + psi * (w - w_avg)`; 1 for none. A number, or a 0-dim tensor, which stays an input
                of a traced or captured call.
            truncation_layers: number of truncated layers, from the first; None for the family's: StyleGAN 8, so that
                fine details keep their variety, StyleGAN2 all.

        Raises:
            ValueError: a label is missing, or `truncation_layers` is negative.
        """
        if z.ndim == 3:
            ws = z
        elif not style_mixing:
            ws = self.mapping(z, label)[:, None].expand(-1, self.num_ws, -1)
        else:
            twice = None if label is None else torch.cat([label, label])
            w = self.mapping(torch.cat([z, torch.randn_like(z)]), twice, batches=2)
            ws, other = w[:, None].expand(-1, self.num_ws, -1).chunk(2)
            layer = torch.arange(self.num_ws, device=z.device)
            cutoff = torch.randint(1, self.ws_in_use, (len(z), 1), device=z.device)
            cutoff = torch.where(torch.rand(len(z), 1, device=z.device) < style_mixing, cutoff, self.num_ws)
            ws = torch.where((layer < cutoff)[:, :, None], ws, other)
        if isinstance(truncation, Tensor) or truncation != 1:
            layers = self.truncated_layers if truncation_layers is None else truncation_layers
            layers = self.num_ws if layers is None else layers
            if layers < 0:
                raise ValueError(f"truncation_layers is {layers}, must be 0 at least")
            ws = ws.to(self.mapping.w_avg.dtype)
            ws = torch.cat([self.mapping.w_avg.lerp(ws[:, :layers], truncation), ws[:, layers:]], 1)
        return ws if self.style_offset is None else ws + self.style_offset

    def synthesize(self, ws: Tensor, *, noise: str | Sequence[str] = "random") -> Tensor:
        """ws [N, num_ws, w_dim] to an image [N, channels, R, R] of nominal range [-1, 1], fp32.

        Args:
            noise: "random", "const" (a fixed noise map for each layer) or "none"; or a sequence of these, one for each
                of `noise_resolutions`. Raises ValueError for anything else.
        """
        raise NotImplementedError


def noise_modes(noise: str | Sequence[str], layers: int) -> list[str]:
    """The `noise` argument of `StyleBasedGenerator.synthesize` as a list with an entry for each layer."""
    modes = [noise] * layers if isinstance(noise, str) else list(noise)
    if len(modes) != layers or not {*modes} <= {"random", "const", "none"}:
        raise ValueError(f"noise is {noise!r}, must be 'random', 'const' or 'none', or {layers} of these, one a layer")
    return modes


def fixed_noise(noise: str, const: Tensor) -> Tensor | None:
    """The noise map of a layer: `const` or zeros; None for "random", which the layer draws itself."""
    if noise == "random":
        return None
    return const if noise == "const" else torch.zeros_like(const)
