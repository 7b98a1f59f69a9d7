"""Model families behind one interface: `generator(z, label) -> image`, `critic(image, label) -> logits`.

A critic's `layers_from_image()` are its layers in the order in which an image passes them, without those at the end
that make the logit: what `--freeze-d` counts.
"""

from dataclasses import dataclass

from torch import nn

from fastgan.models import cgan, dcgan, mlp, pggan, r3gan, stylegan, stylegan2

ARCHITECTURES = {
    "mlp": mlp,
    "dcgan": dcgan,
    "cgan": cgan,
    "pggan": pggan,
    "stylegan": stylegan,
    "stylegan2": stylegan2,
    "r3gan": r3gan,
}


@dataclass(frozen=True)
class ModelConfig:
    """What determines the shape of a generator and its critic.

    Attributes:
        arch: a key of `ARCHITECTURES`.
        resolution: of the square image, a power of two from 8. Of another image, that of a square one with as many
            levels: it is 4 * 2^k for `first` * 2^k.
        channels: of the image: 1 grey, 3 RGB.
        num_classes: of labels; 0 for none.
        z_dim: size of the latent z (and of w, where there is one).
        channel_base: feature maps at resolution r are `min(channel_base / r, channel_max)`.
        channel_max: upper limit of the feature maps. Networks whose widths do not depend on the resolution (mlp, cgan,
            dcgan's "upsample") go by it alone.
        mapping_layers: of StyleGAN2's mapping network.
        mapping_lr: factor of the learning rate of that network.
        variant: which of an architecture's forms: "transposed" or "upsample" for dcgan, "conv" or "mlp" for cgan; empty
            for the first of them, and where there is one form only.
        critic_norm: whether critics with batch norm (dcgan, cgan's "conv") have it.
        critic_mapping_layers: dense layers between the embedding of a label and what StyleGAN2's critic projects upon.
        conv_clamp: limit of the activations of StyleGAN2's convolutions; None for none.
        stddev_group: samples that StyleGAN2's critic compares with each other.
        stddev_features: feature maps it makes of that, of which the channels at 4x4 must be a multiple; 0 for none.
        residual_critic: whether StyleGAN2's critic is made of residual blocks.
        first: height and width of the smallest feature maps, of the generator's first and the critic's last; 4x4 for a
             square image. Families without `ANY_SHAPE` know no other.
    """

    arch: str = "stylegan2"
    resolution: int = 32
    channels: int = 1
    num_classes: int = 0
    z_dim: int = 128
    channel_base: int = 512
    channel_max: int = 128
    mapping_layers: int = 2
    mapping_lr: float = 0.1
    variant: str = ""
    critic_norm: bool = True
    critic_mapping_layers: int = 0
    conv_clamp: float | None = 256.0
    stddev_group: int = 4
    stddev_features: int = 1
    residual_critic: bool = True
    first: tuple[int, int] = (4, 4)

    def __post_init__(self):
        object.__setattr__(self, "first", tuple(self.first))  # JSON has made a list of it

    def plane(self, resolution: int) -> tuple[int, int]:
        """Height and width of the feature maps at one of `resolutions`; at the last, of the image."""
        return self.first[0] * resolution // 4, self.first[1] * resolution // 4

    def features(self, resolution: int) -> int:
        """Feature maps at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ... up to that of the image."""
        return [2**i for i in range(2, self.resolution.bit_length())]


_LEAST = {
    **dict.fromkeys(("channels", "z_dim", "channel_max", "stddev_group"), 1),
    **dict.fromkeys(("num_classes", "critic_mapping_layers", "stddev_features"), 0),
}


def build(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """A freshly initialised generator and critic. Raises ValueError for a configuration that makes no sense."""
    if config.arch not in ARCHITECTURES:
        raise ValueError(f"arch is {config.arch!r}, must be one of {', '.join(ARCHITECTURES)}")
    if config.resolution < 8 or config.resolution & (config.resolution - 1):
        raise ValueError(f"resolution is {config.resolution}, must be a power of two from 8")
    for name, least in _LEAST.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}, must be at least {least}")
    if config.features(config.resolution) < 1:
        raise ValueError(f"channel_base is {config.channel_base}, must be at least the resolution {config.resolution}")
    family = ARCHITECTURES[config.arch]
    if len(config.first) != 2 or not all(type(side) is int and side >= 1 for side in config.first):
        raise ValueError(f"first is {config.first}, must be height and width of the smallest feature maps")
    if config.first != (4, 4) and not getattr(family, "ANY_SHAPE", False):
        raise ValueError(f"first is {config.first}, must be (4, 4) for {config.arch}, which knows square images only")
    variants = getattr(family, "VARIANTS", ())
    if config.variant and config.variant not in variants:
        right = f"must be {' or '.join(variants)}" if variants else "must be empty"
        raise ValueError(f"variant is {config.variant!r}, {right} for {config.arch}")
    if not isinstance(config.critic_norm, bool):
        raise ValueError(f"critic_norm is {config.critic_norm!r}, must be True or False")
    return family.Generator(config), family.Critic(config)


def names_at_any_resolution(config: ModelConfig) -> tuple[dict[str, str], dict[str, str]]:
    """The layers of generator and critic whose names hang on the resolution, each with a name that does not.

    `blocks.0` of StyleGAN2's critic is its block for 64x64 at one resolution, and that for 128x128 at another: both are
    called by what they are for. All other layers are called the same at any resolution.
    """
    names = getattr(ARCHITECTURES[config.arch], "names_at_any_resolution", None)
    return ({}, {}) if names is None else names(config)
