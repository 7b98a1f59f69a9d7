"""Model families behind one interface: `generator(z, label) -> image`, `discriminator(image, label) -> logits`.

A discriminator's `layers_from_image()` are its layers in the order in which an image passes them, without those at the
end that make the logit: what `--freeze-d` counts.
"""

from dataclasses import dataclass

from torch import nn

from fastgan.models import cgan, dcgan, mlp, pggan, r3gan, stylegan, stylegan2
from fastgan.ops.upfirdn2d import BILINEAR

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
    """What determines the shape of a generator and its discriminator.

    Attributes:
        arch: a key of `ARCHITECTURES`.
        resolution: of the square image, a power of two from 8. Of another image, that of a square one with as many
            levels: it is 4 * 2^k for `base_size` * 2^k.
        channels: of the image: 1 grey, 3 RGB.
        num_classes: of labels; 0 for none.
        z_dim: size of the latent z.
        w_dim: size of w, in style-based networks; None for that of z.
        channel_base: feature maps at resolution r are `min(channel_base / r, channel_max)`.
        channel_max: upper limit of the feature maps. Networks whose widths do not depend on the resolution (mlp, cgan,
            dcgan's "upsample") go by it alone.
        discriminator_channel_base, discriminator_channel_max: the same of StyleGAN2's discriminator; None for those of
        the generator.
        mapping_layers: of StyleGAN2's mapping network.
        mapping_lr: factor of the learning rate of that network.
        w_avg_decay: share of the mean of w that a training step keeps; 1 for a mean that is never updated.
        variant: which of an architecture's forms: "transposed" or "upsample" for dcgan, "conv" or "mlp" for cgan; empty
            for the first of them, and where there is one form only.
        discriminator_norm: whether discriminators with batch norm (dcgan, cgan's "conv") have it.
        discriminator_mapping_layers: dense layers between the embedding of a label and what StyleGAN2's discriminator
            projects upon.
        discriminator_mapping_lr: factor of their learning rate; None for `mapping_lr`.
        conv_clamp: limit of the activations of StyleGAN2's convolutions; None for none.
        stddev_group: samples that StyleGAN2's discriminator compares with each other; None for all of a batch.
        stddev_features: feature maps it makes of that, of which the channels at 4x4 must be a multiple; 0 for none.
        generator_architecture: of StyleGAN2's generator: "skip" adds up images of all resolutions, "resnet" is made of
            residual blocks, "orig" does neither.
        discriminator_architecture: of its discriminator: "resnet" is made of residual blocks, "skip" looks at the image
            in each resolution, "orig" does neither.
        noise: whether the layers of StyleGAN2's generator have noise.
        resample_filter: with which StyleGAN2 resamples: [k] for both axes or [kh][kw]; any sum but 0.
        base_size: height and width of the smallest feature maps: the generator's first, the discriminator's last. 4x4
            for a square image; families without `ANY_SHAPE` take no other.
    """

    arch: str = "stylegan2"
    resolution: int = 32
    channels: int = 1
    num_classes: int = 0
    z_dim: int = 128
    w_dim: int | None = None
    channel_base: int = 512
    channel_max: int = 128
    discriminator_channel_base: int | None = None
    discriminator_channel_max: int | None = None
    mapping_layers: int = 2
    mapping_lr: float = 0.1
    w_avg_decay: float = 0.995
    variant: str = ""
    discriminator_norm: bool = True
    discriminator_mapping_layers: int = 0
    discriminator_mapping_lr: float | None = None
    conv_clamp: float | None = 256.0
    stddev_group: int | None = 4
    stddev_features: int = 1
    generator_architecture: str = "skip"
    discriminator_architecture: str = "resnet"
    noise: bool = True
    resample_filter: tuple[float, ...] | tuple[tuple[float, ...], ...] = BILINEAR
    base_size: tuple[int, int] = (4, 4)

    def __post_init__(self):
        for name in ("base_size", "resample_filter"):  # JSON has made lists of them
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))

    @property
    def style_dim(self) -> int:
        """Size of w."""
        return self.z_dim if self.w_dim is None else self.w_dim

    @property
    def projection_lr(self) -> float:
        """Factor of the learning rate of the discriminator's mapping layers."""
        return self.mapping_lr if self.discriminator_mapping_lr is None else self.discriminator_mapping_lr

    def feature_size(self, resolution: int) -> tuple[int, int]:
        """Height and width of the feature maps at one of `resolutions`; at the last, of the image."""
        return self.base_size[0] * resolution // 4, self.base_size[1] * resolution // 4

    def features(self, resolution: int) -> int:
        """Feature maps at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    def discriminator_features(self, resolution: int) -> int:
        """The same of StyleGAN2's discriminator."""
        base, most = self.discriminator_channel_base, self.discriminator_channel_max
        base = self.channel_base if base is None else base
        return min(base // resolution, self.channel_max if most is None else most)

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ... up to that of the image."""
        return [2**i for i in range(2, self.resolution.bit_length())]


def _as_tuple(value):
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


_LEAST = {
    **dict.fromkeys(("channels", "z_dim", "w_dim", "channel_max", "discriminator_channel_max", "stddev_group"), 1),
    **dict.fromkeys(("num_classes", "discriminator_mapping_layers", "stddev_features"), 0),
}
_WORDS = {
    "generator_architecture": ("skip", "resnet", "orig"),
    "discriminator_architecture": ("resnet", "skip", "orig"),
}


def build(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """A freshly initialised generator and discriminator. Raises ValueError for a configuration that makes no sense."""
    if config.arch not in ARCHITECTURES:
        raise ValueError(f"arch is {config.arch!r}, must be one of {', '.join(ARCHITECTURES)}")
    if config.resolution < 8 or config.resolution & (config.resolution - 1):
        raise ValueError(f"resolution is {config.resolution}, must be a power of two from 8")
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, must be at least {least}")
    for name, words in _WORDS.items():
        if getattr(config, name) not in words:
            raise ValueError(f"{name} is {getattr(config, name)!r}, must be one of {', '.join(words)}")
    if not 0 <= config.w_avg_decay <= 1:
        raise ValueError(f"w_avg_decay is {config.w_avg_decay}, must be from 0 to 1")
    for name, features in (
        ("channel_base", config.features),
        ("discriminator_channel_base", config.discriminator_features),
    ):
        if features(config.resolution) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, must be at least the resolution {config.resolution}")
    family = ARCHITECTURES[config.arch]
    if len(config.base_size) != 2 or not all(type(side) is int and side >= 1 for side in config.base_size):
        raise ValueError(f"base_size is {config.base_size}, must be height and width of the smallest feature maps")
    if config.base_size != (4, 4) and not getattr(family, "ANY_SHAPE", False):
        raise ValueError(f"base_size is {config.base_size}, must be (4, 4) for {config.arch}: its images are square")
    variants = getattr(family, "VARIANTS", ())
    if config.variant and config.variant not in variants:
        right = f"must be {' or '.join(variants)}" if variants else "must be empty"
        raise ValueError(f"variant is {config.variant!r}, {right} for {config.arch}")
    if not isinstance(config.discriminator_norm, bool):
        raise ValueError(f"discriminator_norm is {config.discriminator_norm!r}, must be True or False")
    return family.Generator(config), family.Discriminator(config)


def resolution_independent_names(config: ModelConfig) -> tuple[dict[str, str], dict[str, str]]:
    """The layers of generator and discriminator whose names hang on the resolution, each with a name that does not.

    `blocks.0` of StyleGAN2's discriminator is its block for 64x64 at one resolution, and that for 128x128 at another:
    both are called by what they are for. All other layers are called the same at any resolution.
    """
    names = getattr(ARCHITECTURES[config.arch], "resolution_independent_names", None)
    return ({}, {}) if names is None else names(config)
