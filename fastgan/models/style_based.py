"""What style-based generators share: the mapping network, styles for every layer, noise (Karras et al. 2019)."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgan.layers import EqualizedLinear
from fastgan.models.labels import concat_label
from fastgan.ops.arithmetic import average_in


def dense_layers(sizes: Sequence[int], lr_multiplier: float) -> nn.ModuleList:
    """A mapping network's layers, from each of these sizes to the next."""
    return nn.ModuleList(
        EqualizedLinear(i, o, act="lrelu", lr_multiplier=lr_multiplier) for i, o in itertools.pairwise(sizes)
    )


class MappingNetwork(nn.Module):
    """z [N, z_dim] and a label [N] to w [N, w_dim]; keeps the running mean of w for truncation."""

    def __init__(self, config):
        super().__init__()
        width = config.style_dim
        self.embed = EqualizedLinear(config.num_classes, width) if config.num_classes else None
        sizes = [config.z_dim + (width if config.num_classes else 0)] + [width] * config.mapping_layers
        self.layers = dense_layers(sizes, config.mapping_lr)
        self.register_buffer("w_avg", torch.zeros(width))
        self.decay = config.w_avg_decay

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        x = concat_label(z, self.embed, label)
        for layer in self.layers:
            x = layer(x)
        if self.training and torch.is_grad_enabled():
            average_in(self.w_avg, x.detach().mean(0, dtype=self.w_avg.dtype), 1 - self.decay)
        return x


class StyleBasedGenerator(nn.Module):
    """A generator of two halves: `styles` makes the w of every layer, `synthesize` the image of these.

    A family gives `mapping`, `num_ws`, `noise_resolutions` and `synthesize`.
    """

    supports = frozenset({"style_mixing", "truncation", "noise"})
    mapping: MappingNetwork
    num_ws: int
    noise_resolutions: list[int]  # of each layer with noise, in their order
    truncated_layers: int | None = None  # the first so many are truncated unless the caller says otherwise; None: all

    @property
    def ws_in_use(self) -> int:
        """How many of `num_ws` are read at the present stage of growth."""
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
        """`synthesize` of `styles`, with their arguments."""
        options = {"style_mixing": style_mixing, "truncation": truncation, "truncation_layers": truncation_layers}
        return self.synthesize(self.styles(z, label, **options), noise=noise)

    def styles(
        self,
        z: Tensor,
        label: Tensor | None = None,
        *,
        style_mixing: float = 0.0,
        truncation: float | Tensor = 1.0,
        truncation_layers: int | None = None,
    ) -> Tensor:
        """The w of every layer, [N, num_ws, w_dim].

        Args:
            z: [N, z_dim] from N(0, 1).
            label: [N] int64 class indices, for a conditional generator.
            style_mixing: probability that a sample's later layers take the w of another latent.
            truncation: psi; w is drawn towards its mean by this factor (1: not at all). A number, or a 0-dim tensor
                where it is to stay an input of what is traced or captured.
            truncation_layers: in the first so many layers; None for what the family does: StyleGAN in 8, the details of
                higher resolutions being left as they are, StyleGAN2 in all.

        Raises:
            ValueError: a label is missing, or `truncation_layers` is negative.
        """
        ws = self.mapping(z, label)[:, None].expand(-1, self.num_ws, -1)
        if style_mixing:
            other = self.mapping(torch.randn_like(z), label)[:, None]
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
        return ws

    def synthesize(self, ws: Tensor, *, noise: str | Sequence[str] = "random") -> Tensor:
        """ws [N, num_ws, w_dim] to an image [N, channels, R, R] of nominal range [-1, 1], fp32.

        `noise` is "random", "const" (the fixed noise image of each layer) or "none", or a sequence of these words, one
        for each of `noise_resolutions`; ValueError for anything else.
        """
        raise NotImplementedError


def noise_modes(noise: str | Sequence[str], layers: int) -> list[str]:
    """`noise` as `StyleBasedGenerator.synthesize` takes it, as one word for each of so many layers."""
    words = [noise] * layers if isinstance(noise, str) else list(noise)
    if len(words) != layers or not {*words} <= {"random", "const", "none"}:
        raise ValueError(
            f"noise is {noise!r}, must be 'random', 'const' or 'none', or {layers} such words, one a layer"
        )
    return words


def fixed_noise(noise: str, const: Tensor) -> Tensor | None:
    """What a layer whose fixed noise is `const` adds for one of these words; None: drawn anew."""
    if noise == "random":
        return None
    return const if noise == "const" else torch.zeros_like(const)
