"""Model families behind one interface: `generator(z, label) -> image`, `discriminator(image, label) -> logits`.

`supports` of a network names keyword arguments that it also takes. A generator that supports "small" returns, given
`small=True`, the image and a smaller one, a pair that its discriminator takes in place of an image. A discriminator
that supports "reconstruct" returns, given `reconstruct=True`, the logits and a self-supervised loss. Logits are [N], or
[N, P] for P parts of each image.

A discriminator's `layers_from_image()` are its layers in the order in which an image passes them, except for the last
ones that compute the logit. `--freeze-d` counts these.
"""

from dataclasses import dataclass

from torch import nn

from fastgan.models import cgan, dcgan, fastgan, mlp, pggan, r3gan, stylegan, stylegan2, stylegan3
from fastgan.models.projected import MULTIPLE, ProjectedDiscriminator
from fastgan.ops.upfirdn2d import BILINEAR

ARCHITECTURES = {
    "mlp": mlp,
    "dcgan": dcgan,
    "cgan": cgan,
    "pggan": pggan,
    "stylegan": stylegan,
    "stylegan2": stylegan2,
    "stylegan3": stylegan3,
    "r3gan": r3gan,
    "fastgan": fastgan,
}


@dataclass(frozen=True)
class ModelConfig:
    """The configuration that determines the shapes of a generator and its discriminator.

    Feature maps at resolution r: `min(channel_base / r, channel_max)`. Families whose widths do not depend on the
    resolution (mlp, cgan, dcgan's "upsample") use `channel_max` alone.

    Attributes:
        arch: a key of `ARCHITECTURES`.
        resolution: side of square images, a power of two from 8. For other shapes: 4 * 2^k, where the image is
            `base_size` * 2^k.
        channels: channels of the image: 1 grey, 3 RGB.
        num_classes: number of classes; 0 without labels.
        z_dim: size of the latent z.
        w_dim: size of the intermediate latent w, in style-based networks; None for z_dim.
        channel_base: feature maps at resolution r are at most `channel_base / r`.
        channel_max: upper limit of the feature maps.
        discriminator_channel_base, discriminator_channel_max: the same for StyleGAN2's discriminator; None: as above,
            for StyleGAN3's "r" half of that.
        mapping_layers: number of layers of the mapping network.
        mapping_lr: factor of the mapping network's learning rate.
        w_avg_decay: decay of the running mean of w; 1 for never updated.
        variant: form of the architecture: "transposed" or "upsample" for dcgan, "conv" or "mlp" for cgan, "t" or "r"
            for stylegan3; empty for the first, or if there is one form only.
        tanh: whether the images of stylegan2, stylegan3, stylegan, pggan and r3gan go through tanh, so that they cannot
            leave [-1, 1]. Those of the other families always do.
        discriminator: "own", the family's; or "projected" (`fastgan.models.projected`), for any generator.
        projected_size: shorter side of the images that the projected discriminator sees, a multiple of 32; larger
            images keep their size. 0 without it.
        discriminator_norm: whether the discriminators of dcgan, cgan's "conv" and fastgan have batch norm.
        discriminator_mapping_layers: layers of StyleGAN2's mapping network for labels in the discriminator.
        discriminator_mapping_lr: factor of their learning rate; None for `mapping_lr`.
        conv_clamp: limit of the activations of StyleGAN2's convolutions; None for none.
        stddev_group: group size of StyleGAN2's minibatch stddev; None for the whole batch.
        stddev_features: feature maps that minibatch stddev adds, which must divide the channels at 4x4; 0 to leave it
            out.
        generator_architecture: StyleGAN2: "skip" sums images of all resolutions, "resnet" has residual blocks,
            "orig" neither.
        discriminator_architecture: StyleGAN2: "resnet" has residual blocks, "skip" reads the image at every
            resolution, "orig" neither.
        noise: whether StyleGAN2's generator has noise inputs.
        pixel_shuffle: whether StyleGAN2's networks work at half the image's resolution, where four pixels are one place
            of four times the channels (Shi et al. 2016, arXiv 1609.05158).
        synthesis_layers: layers of StyleGAN3's generator beside the one that makes the image; 0 for other families.
        critical_layers: the last ones of these, whose signals reach the image's bandwidth.
        margin: samples around the image on each side in StyleGAN3's feature maps; 0 for other families.
        resample_filter: FIR filter of StyleGAN2, [k] for both axes or [kh][kw]; any sum but 0.
        base_size: height and width of the smallest feature maps. Families without `ANY_SHAPE` support (4, 4) only.
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
    tanh: bool = False
    discriminator: str = "own"
    projected_size: int = 0
    discriminator_norm: bool = True
    discriminator_mapping_layers: int = 0
    discriminator_mapping_lr: float | None = None
    conv_clamp: float | None = 256.0
    stddev_group: int | None = 4
    stddev_features: int = 1
    generator_architecture: str = "skip"
    discriminator_architecture: str = "resnet"
    noise: bool = True
    pixel_shuffle: bool = False
    synthesis_layers: int = 14
    critical_layers: int = 2
    margin: int = 10
    resample_filter: tuple[float, ...] | tuple[tuple[float, ...], ...] = BILINEAR
    base_size: tuple[int, int] = (4, 4)

    def __post_init__(self):
        for name in ("base_size", "resample_filter"):  # JSON turns tuples into lists
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        if self.arch != "stylegan3":
            for name in ("synthesis_layers", "margin"):
                object.__setattr__(self, name, 0)

    @property
    def style_dim(self) -> int:
        """Size of w."""
        return self.z_dim if self.w_dim is None else self.w_dim

    @property
    def projection_lr(self) -> float:
        """Learning rate factor of the discriminator's mapping network for labels."""
        return self.mapping_lr if self.discriminator_mapping_lr is None else self.discriminator_mapping_lr

    def feature_size(self, resolution: int) -> tuple[int, int]:
        """Height and width of the feature maps at one of `resolutions`; of the image at `resolution`."""
        return self.base_size[0] * resolution // 4, self.base_size[1] * resolution // 4

    def features(self, resolution: int) -> int:
        """Number of feature maps at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    def discriminator_features(self, resolution: int) -> int:
        """Number of feature maps of StyleGAN2's discriminator at a resolution."""
        base, limit = self.discriminator_channel_base, self.discriminator_channel_max
        share = 2 if (self.arch, self.variant) == ("stylegan3", "r") else 1
        base = self.channel_base // share if base is None else base
        return min(base // resolution, self.channel_max // share if limit is None else limit)

    @property
    def resolutions(self) -> list[int]:
        """Of the feature maps: 4, 8, ... up to the image's; with `pixel_shuffle` to half of it."""
        return [2**i for i in range(2, self.resolution.bit_length() - self.pixel_shuffle)]


def _as_tuple(value):
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


_MINIMA = {
    **dict.fromkeys(("channels", "z_dim", "w_dim", "channel_max", "discriminator_channel_max", "stddev_group"), 1),
    **dict.fromkeys(("num_classes", "discriminator_mapping_layers", "stddev_features"), 0),
}
_CHOICES = {
    "generator_architecture": ("skip", "resnet", "orig"),
    "discriminator_architecture": ("resnet", "skip", "orig"),
    "discriminator": ("own", "projected"),
}


def build(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    """A new generator and discriminator with initial weights. Raises ValueError for an invalid configuration."""
    generator = build_generator(config)
    if config.discriminator == "projected":
        return generator, ProjectedDiscriminator(config)
    return generator, ARCHITECTURES[config.arch].Discriminator(config)


def build_generator(config: ModelConfig) -> nn.Module:
    """The generator alone. Raises ValueError for an invalid configuration, of the discriminator as well."""
    if config.arch not in ARCHITECTURES:
        raise ValueError(f"arch is {config.arch!r}, must be one of {', '.join(ARCHITECTURES)}")
    if config.resolution < 8 or config.resolution & (config.resolution - 1):
        raise ValueError(f"resolution is {config.resolution}, must be a power of two from 8")
    for name, minimum in _MINIMA.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name} is {value}, must be at least {minimum}")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name} is {getattr(config, name)!r}, must be one of {', '.join(choices)}")
    for name in ("tanh", "discriminator_norm", "noise", "pixel_shuffle"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} is {getattr(config, name)!r}, must be True or False")
    if config.pixel_shuffle and (config.arch != "stylegan2" or config.resolution < 16):
        raise ValueError(
            f"pixel_shuffle is True, must be False for {config.arch} at resolution {config.resolution}: it is for "
            "stylegan2 from 16 on"
        )
    if not 0 <= config.w_avg_decay <= 1:
        raise ValueError(f"w_avg_decay is {config.w_avg_decay}, must be from 0 to 1")
    largest = config.resolutions[-1]
    for name, features in (
        ("channel_base", config.features),
        ("discriminator_channel_base", config.discriminator_features),
    ):
        if features(largest) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, must be at least the resolution {largest}")
    family = ARCHITECTURES[config.arch]
    if len(config.base_size) != 2 or not all(type(side) is int and side >= 1 for side in config.base_size):
        raise ValueError(f"base_size is {config.base_size}, must be height and width of the smallest feature maps")
    if config.base_size != (4, 4) and not getattr(family, "ANY_SHAPE", False):
        raise ValueError(f"base_size is {config.base_size}, must be (4, 4) for {config.arch}: its images are square")
    variants = getattr(family, "VARIANTS", ())
    if config.variant and config.variant not in variants:
        right = f"must be {' or '.join(variants)}" if variants else "must be empty"
        raise ValueError(f"variant is {config.variant!r}, {right} for {config.arch}")
    too_small = config.projected_size < 2 * MULTIPLE
    if config.discriminator == "projected" and (too_small or config.projected_size % MULTIPLE):
        raise ValueError(
            f"projected_size is {config.projected_size}, must be a multiple of {MULTIPLE} from {2 * MULTIPLE}"
        )
    return family.Generator(config)


def resolution_independent_names(config: ModelConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Names of layers in generator and discriminator, mapped to names that are the same at any image resolution.

    For example, `blocks.0` of StyleGAN2's discriminator at 64x64 is `blocks.64`. Layers that are not listed have the
    same name at any resolution.
    """
    names = getattr(ARCHITECTURES[config.arch], "resolution_independent_names", None)
    generator, discriminator = ({}, {}) if names is None else names(config)
    return generator, discriminator if config.discriminator == "own" else {}
