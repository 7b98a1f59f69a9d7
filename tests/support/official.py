"""Files as stylegan2-ada-pytorch and stylegan3 write them, and their networks in plain PyTorch.

Uses neither fastgan nor the official code: files are built from tables of names and shapes, images from `F.conv2d` and
the like, tensor by tensor under its official name.
"""

import contextlib
import math
import pickle
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\nraise SystemExit('executed')\n"


def _function_of(module: types.ModuleType, name: str):
    """Function that a pickle refers to as module.name. It must not be called."""
    function = types.FunctionType((lambda meta: None).__code__, {}, name)
    function.__module__, function.__qualname__ = module.__name__, name
    setattr(module, name, function)
    return function


_persistence = types.ModuleType("torch_utils.persistence")
_reconstruct = _function_of(_persistence, "_reconstruct_persistent_obj")
_util = types.ModuleType("dnnlib.util")
EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
_util.EasyDict = EasyDict


@dataclass
class Saved:
    """A module as the official code pickles it."""

    class_name: str
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, "Saved"] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def __reduce__(self):
        state = {
            "training": False,
            "_parameters": {name: torch.nn.Parameter(value) for name, value in self.parameters.items()},
            "_buffers": dict(self.buffers),
            "_non_persistent_buffers_set": set(),
            "_modules": dict(self.modules),
            "_init_args": (),
            "_init_kwargs": EasyDict(self.kwargs),
            **self.attributes,
        }
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": state}
        return _reconstruct, (meta,)

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The state dictionary."""
        own = {prefix + name: value for name, value in (self.parameters | self.buffers).items()}
        for name, module in self.modules.items():
            own |= module.tensors(f"{prefix}{name}.")
        return own

    def freeze(self) -> None:
        """Freeze the layer as the official code does: parameters become buffers."""
        self.buffers |= self.parameters
        self.parameters = {}


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    """Pickle `content` while stand-ins of the official modules are in `sys.modules`."""
    names = {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib")}
    names |= {"torch_utils.persistence": _persistence, "dnnlib.util": _util}
    sys.modules.update(names)
    try:
        path.write_bytes(pickle.dumps(content, protocol))
    finally:
        for name in names:
            del sys.modules[name]
    return path


@dataclass(frozen=True)
class Sizes:
    """Sizes of both networks, by their official names."""

    img_resolution: int = 32
    img_channels: int = 3
    c_dim: int = 0
    z_dim: int = 12
    channel_base: int = 256
    channel_max: int = 16
    num_layers: int = 3
    lr_multiplier: float = 0.01
    conv_clamp: float | None = 256.0
    architecture: str = "resnet"
    mbstd_group_size: int | None = 4
    mbstd_num_channels: int = 1
    discriminator_layers: int = 8
    discriminator_lr: float | None = None  # None: lr_multiplier; likewise below
    discriminator_base: int | None = None
    discriminator_max: int | None = None
    w_dim: int | None = None
    generator_architecture: str = "skip"
    resample_filter: tuple = (1, 3, 3, 1)
    use_noise: bool = True
    flat: bool = False
    loud: float = 1.0  # size of biases

    def width(self, resolution: int) -> int:
        return min(self.channel_base // resolution, self.channel_max)

    def discriminator_width(self, resolution: int) -> int:
        return min(
            (self.discriminator_base or self.channel_base) // resolution, self.discriminator_max or self.channel_max
        )

    @property
    def style_dim(self) -> int:
        return self.w_dim or self.z_dim

    @property
    def rate(self) -> float:
        return self.discriminator_lr or self.lr_multiplier

    @property
    def filter(self) -> Tensor:
        """In two dimensions."""
        f = torch.tensor(self.resample_filter, dtype=torch.float32)
        f = torch.outer(f, f) if f.dim() == 1 else f
        return f / f.sum()

    @property
    def kept(self) -> Tensor:
        """Filter as resampling modules store it: 1D from 8 taps on, else 2D."""
        f = torch.tensor(self.resample_filter, dtype=torch.float32)
        return f / f.sum() if f.dim() == 1 and len(f) >= 8 else self.filter

    @property
    def resolutions(self) -> list[int]:
        return [2**i for i in range(2, int(math.log2(self.img_resolution)) + 1)]


def inputs(s, n: int = 4):
    """Latents, labels or None, and images for networks of these sizes."""
    torch.manual_seed(1)
    label = torch.arange(n) % s.c_dim if s.c_dim else None
    return torch.randn(n, s.z_dim), label, torch.randn(n, s.img_channels, s.img_resolution, s.img_resolution)


FILTER = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def _dense(i: int, o: int, bias: float = 0.0, size: float = 0.3, lr: float = 1.0) -> Saved:
    return Saved("FullyConnectedLayer", {"weight": torch.randn(o, i) / lr, "bias": (bias + size * torch.randn(o)) / lr})


def _layer(s: Sizes, i: int, o: int, r: int, filter: Tensor = FILTER) -> Saved:
    saved = Saved(
        "SynthesisLayer",
        {"weight": torch.randn(o, i, 3, 3), "noise_strength": torch.randn(()), "bias": s.loud * torch.randn(o)},
        {"resample_filter": filter, "noise_const": torch.randn(r, r)},
        {"affine": _dense(s.style_dim, i, bias=1.0)},
        attributes={"resolution": r, "conv_clamp": s.conv_clamp, "activation": "lrelu", "act_gain": math.sqrt(2)},
    )
    if not s.use_noise:
        del saved.parameters["noise_strength"], saved.buffers["noise_const"]
    return saved


def _conv(s: Sizes, i: int, o: int, k: int, bias: bool = True, filter: Tensor = FILTER) -> Saved:
    parameters = {"weight": torch.randn(o, i, k, k)} | ({"bias": s.loud * torch.randn(o)} if bias else {"bias": None})
    saved = Saved("Conv2dLayer", parameters, {"resample_filter": filter}, attributes={"conv_clamp": s.conv_clamp})
    if not bias:
        del saved.parameters["bias"]
        saved.attributes |= {"bias": None}
    return saved


def _mapping(s: Sizes, inputs: int, width: int, layers: int, lr: float) -> Saved:
    embed = {"embed": _dense(s.c_dim, width)} if s.c_dim else {}
    sizes = [inputs + (width if s.c_dim else 0)] + [width] * layers
    dense = {f"fc{i}": _dense(sizes[i], width, lr=lr) for i in range(layers)}
    return Saved("MappingNetwork", modules=embed | dense)


def generator(s: Sizes, **more: Any) -> Saved:
    blocks, before = {}, 0
    for r in s.resolutions:
        c = s.width(r)
        rgb = Saved("ToRGBLayer", {"weight": torch.randn(s.img_channels, c, 1, 1), "bias": torch.randn(s.img_channels)})
        rgb.modules["affine"] = _dense(s.style_dim, c, bias=1.0)
        block = Saved("SynthesisBlock", buffers={"resample_filter": s.kept})
        if before:
            block.modules["conv0"] = _layer(s, before, c, r, s.kept)
        else:
            block.parameters["const"] = torch.randn(c, 4, 4)
        block.modules["conv1"] = _layer(s, c, c, r)
        if s.generator_architecture == "skip" or r == s.img_resolution:
            block.modules["torgb"] = rgb
        if before and s.generator_architecture == "resnet":
            block.modules["skip"] = _conv(s, before, c, 1, bias=False, filter=s.kept)
        blocks[f"b{r}"], before = block, c
    mapping = _mapping(s, s.z_dim, s.style_dim, s.num_layers, s.lr_multiplier)
    mapping.buffers["w_avg"] = torch.randn(s.style_dim)
    kwargs: dict[str, Any] = {
        **{name: getattr(s, name) for name in ("z_dim", "c_dim", "img_resolution", "img_channels")},
        "w_dim": s.style_dim,
        "mapping_kwargs": EasyDict(num_layers=s.num_layers, lr_multiplier=s.lr_multiplier),
    }
    synthesis = {"channel_base": s.channel_base, "channel_max": s.channel_max, "num_fp16_res": 4}
    synthesis |= {"architecture": s.generator_architecture, "use_noise": s.use_noise}
    synthesis |= {"resample_filter": list(s.resample_filter)} | more
    kwargs |= synthesis if s.flat else {"synthesis_kwargs": EasyDict(synthesis)}
    return Saved(
        "Generator", modules={"synthesis": Saved("Synthesis", modules=blocks), "mapping": mapping}, kwargs=kwargs
    )


def discriminator(s: Sizes, **more: Any) -> Saved:
    modules = {}
    for r in s.resolutions[:0:-1]:
        c, after = s.discriminator_width(r), s.discriminator_width(r // 2)
        block = Saved("DiscriminatorBlock", buffers={"resample_filter": s.kept})
        if r == s.img_resolution or s.architecture == "skip":
            block.modules["fromrgb"] = _conv(s, s.img_channels, c, 1)
        block.modules |= {"conv0": _conv(s, c, c, 3), "conv1": _conv(s, c, after, 3, filter=s.kept)}
        if s.architecture == "resnet":
            block.modules["skip"] = _conv(s, c, after, 1, bias=False, filter=s.kept)
        modules[f"b{r}"] = block
    c = s.discriminator_width(4)
    last = {"fromrgb": _conv(s, s.img_channels, c, 1)} if s.architecture == "skip" else {}
    last |= {
        "conv": _conv(s, c + s.mbstd_num_channels, c, 3),
        "fc": _dense(16 * c, c),
        "out": _dense(c, c if s.c_dim else 1),
    }
    modules["b4"] = Saved("DiscriminatorEpilogue", modules=last)
    if s.c_dim:
        modules["mapping"] = _mapping(s, 0, c, s.discriminator_layers, s.rate)
    kwargs = {
        **{name: getattr(s, name) for name in ("c_dim", "img_resolution", "img_channels", "architecture")},
        **{"channel_base": s.discriminator_base or s.channel_base, "channel_max": s.discriminator_max or s.channel_max},
        "block_kwargs": EasyDict(freeze_layers=0, resample_filter=list(s.resample_filter)),
        "mapping_kwargs": EasyDict({"lr_multiplier": s.rate} if s.c_dim else {}),
        "epilogue_kwargs": EasyDict({n: getattr(s, n) for n in ("mbstd_group_size", "mbstd_num_channels")}),
        **more,
    }
    if s.discriminator_layers != 8:
        kwargs["mapping_kwargs"]["num_layers"] = s.discriminator_layers
    return Saved("Discriminator", modules=modules, kwargs=kwargs)


def snapshot(s: Sizes) -> dict[str, Any]:
    """Snapshot of a training of the official code."""
    torch.manual_seed(0)
    trained, average = generator(s), generator(s)
    for name, block in average.modules["synthesis"].modules.items():  # the average has the same fixed noise
        for layer in ("conv0", "conv1"):
            if layer in block.modules:
                same = trained.modules["synthesis"].modules[name].modules[layer]
                block.modules[layer].buffers |= same.buffers
    return {
        "G": trained,
        "D": discriminator(s),
        "G_ema": average,
        "augment_pipe": None,
        "training_set_kwargs": EasyDict(path="data.zip", use_labels=s.c_dim > 0, max_size=None, xflip=False),
    }


# ---- the networks in plain PyTorch; `t` are tensors by their official names -----------------------------------------


def dense(x: Tensor, t: dict[str, Tensor], name: str, lr: float = 1.0) -> Tensor:
    weight = t[name + ".weight"]
    return x @ weight.t() * (lr / math.sqrt(weight.shape[1])) + t[name + ".bias"] * lr


def lrelu(x: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    y = F.leaky_relu(x, 0.2) * (math.sqrt(2) * gain)
    return y if clamp is None else y.clamp(-clamp * gain, clamp * gain)


def normalised(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def filtered(x: Tensor, s: Sizes, factor: float = 1.0, up: int = 1, down: int = 1) -> Tensor:
    """Upsample with zeros by `up`, convolve (not correlate) with the filter, take every `down`-th pixel."""
    f = s.filter.to(x.dtype).mul(factor).flip(0, 1)
    x = F.pad(spread(x, up), [side for k in f.shape[::-1] for side in _sides(k, up, down)])  # crops where negative
    return F.conv2d(x, f.expand(x.shape[1], 1, *f.shape), stride=down, groups=x.shape[1])


def spread(x: Tensor, up: int) -> Tensor:
    """Upsample [N, C, H, W] by `up`: zeros after each pixel, in both directions."""
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, h * up, w * up)
    y[:, :, ::up, ::up] = x
    return y


def _sides(k: int, up: int, down: int, more: int = 0) -> tuple[int, int]:
    """Zeros on both sides of an axis, for a filter of k taps; `more` for a convolution behind it."""
    before = (k + up - 1) // 2 if up > 1 else (k - down + 1) // 2
    return before + more, (k - max(up, down)) // 2 + more


def doubled(x: Tensor, weight: Tensor, s: Sizes) -> Tensor:
    """Upsampling convolution by its definition: zeros between pixels, filter, convolution by the flipped weight."""
    f = s.filter.to(x.dtype).mul(4).flip(0, 1)
    x = F.pad(spread(x, 2), [side for k in f.shape[::-1] for side in _sides(k, 2, 1, weight.shape[2] // 2)])
    x = F.conv2d(x, f.expand(x.shape[1], 1, *f.shape), groups=x.shape[1])
    return F.conv2d(x, weight.flip(2, 3))


def mapped(x: Tensor | None, label: Tensor | None, t: dict[str, Tensor], s: Sizes, lr: float, layers: int) -> Tensor:
    parts = [] if x is None else [normalised(x)]
    if label is not None:
        parts.append(
            normalised(dense(F.one_hot(label, s.c_dim).to(t["mapping.embed.weight"].dtype), t, "mapping.embed"))
        )
    x = torch.cat(parts, 1)
    for i in range(layers):
        x = lrelu(dense(x, t, f"mapping.fc{i}", lr))
    return x


def modulated(x: Tensor, weight: Tensor, style: Tensor, s: Sizes, demodulate: bool = True, up: int = 1) -> Tensor:
    """Sample by sample, each with a weight of its own."""
    images = []
    for image, factors in zip(x, style, strict=True):
        w = weight * factors[None, :, None, None]
        if demodulate:
            w = w * (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        if up == 1:
            images.append(F.conv2d(image[None], w, padding=w.shape[2] // 2))
        else:
            images.append(doubled(image[None], w, s))
    return torch.cat(images)


def styled(
    x: Tensor, w: Tensor, t: dict[str, Tensor], name: str, s: Sizes, noise: str, up: int = 1, gain: float = 1.0
) -> Tensor:
    x = modulated(x, t[name + ".weight"], dense(w, t, name + ".affine"), s, up=up)
    if noise == "const" and s.use_noise:
        x = x + t[name + ".noise_const"] * t[name + ".noise_strength"]
    elif noise == "random" and s.use_noise:
        x = x + torch.randn(len(x), 1, *x.shape[2:]) * t[name + ".noise_strength"]
    return lrelu(x + t[name + ".bias"][:, None, None], gain, s.conv_clamp)


def image_of(
    z: Tensor, label: Tensor | None, t: dict[str, Tensor], s: Sizes, *,
    truncation_psi: float = 1.0, truncation_cutoff: int | None = None, noise_mode: str = "const",
) -> Tensor:  # fmt: skip
    ws = mapped(z, label, t, s, s.lr_multiplier, s.num_layers)[:, None].repeat(
        1, 2 * int(math.log2(s.img_resolution)) - 2, 1
    )
    ws[:, :truncation_cutoff] = t["mapping.w_avg"].lerp(ws[:, :truncation_cutoff], truncation_psi)
    x, image, used = t["synthesis.b4.const"].expand(len(z), -1, -1, -1), None, 0
    for r in s.resolutions:
        block = f"synthesis.b{r}"
        skip, gain = 0.0, 1.0
        if r > 4:
            if s.generator_architecture == "resnet":
                gain = math.sqrt(0.5)
                skip = gain * filtered(convolved(x, t, block + ".skip"), s, factor=4, up=2)
            x = styled(x, ws[:, used], t, block + ".conv0", s, noise_mode, up=2)
            used += 1
        x = styled(x, ws[:, used], t, block + ".conv1", s, noise_mode, gain=gain) + skip
        used += 1  # the style of ToRGB is also that of the next block's first layer
        if image is not None:
            image = filtered(image, s, factor=4, up=2)
        if block + ".torgb.weight" not in t:
            continue
        weight = t[block + ".torgb.weight"]
        style = dense(ws[:, used], t, block + ".torgb.affine") / math.sqrt(weight.shape[1])
        y = modulated(x, weight, style, s, demodulate=False) + t[block + ".torgb.bias"][:, None, None]
        y = y if s.conv_clamp is None else y.clamp(-s.conv_clamp, s.conv_clamp)
        image = y if image is None else image + y
    return image


def convolved(x: Tensor, t: dict[str, Tensor], name: str, **options: int) -> Tensor:
    weight = t[name + ".weight"]
    return F.conv2d(x, weight / math.sqrt(weight[0].numel()), t.get(name + ".bias"), **options)


def _for_halving(x: Tensor, s: Sizes) -> Tensor:
    """Filtered in full, with what a 3x3 convolution of stride 2 needs around it to halve the size."""
    f = s.filter.to(x.dtype).flip(0, 1)
    x = F.pad(x, [side for k in f.shape[::-1] for side in _sides(k, 1, 2, 1)])
    return F.conv2d(x, f.expand(x.shape[1], 1, *f.shape), groups=x.shape[1])


def logits_of(image: Tensor, label: Tensor | None, t: dict[str, Tensor], s: Sizes) -> Tensor:
    residual = s.architecture == "resnet"
    x = lrelu(convolved(image, t, f"b{s.img_resolution}.fromrgb"), clamp=s.conv_clamp)
    for r in s.resolutions[:0:-1]:
        y = lrelu(convolved(x, t, f"b{r}.conv0", padding=1), clamp=s.conv_clamp)
        y = convolved(_for_halving(y, s), t, f"b{r}.conv1", stride=2)
        y = lrelu(y, math.sqrt(0.5) if residual else 1.0, s.conv_clamp)
        if residual:
            y = y + convolved(filtered(x, s, down=2), t, f"b{r}.skip") * math.sqrt(0.5)
        if s.architecture == "skip":
            image = filtered(image, s, down=2)
            clamp = s.conv_clamp if r > 8 else None
            y = y + lrelu(convolved(image, t, f"b{r // 2}.fromrgb"), clamp=clamp)
        x = y
    if s.mbstd_num_channels:
        n, c, height, width = x.shape
        group = n if s.mbstd_group_size is None else min(s.mbstd_group_size, n)
        y = x.reshape(group, n // group, s.mbstd_num_channels, c // s.mbstd_num_channels, height, width)
        y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((2, 3, 4)).repeat(group, 1)
        x = torch.cat([x, y[:, :, None, None].expand(-1, -1, height, width)], 1)
    x = lrelu(convolved(x, t, "b4.conv", padding=1), clamp=s.conv_clamp)
    x = dense(lrelu(dense(x.flatten(1), t, "b4.fc")), t, "b4.out")
    if label is None:
        return x[:, 0]
    return (x * mapped(None, label, t, s, s.rate, s.discriminator_layers)).sum(1) / math.sqrt(x.shape[1])


@contextlib.contextmanager
def nothing_of_it_importable():
    """Loading within must do without the official modules; they are not there."""
    before = set(sys.modules)
    assert not {"torch_utils", "dnnlib", "torch_utils.persistence", "dnnlib.util"} & before
    yield
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("torch_utils", "dnnlib")}


if __name__ == "__main__":
    # A small pair for grey glyphs of ten classes, to try docs/official_networks.md with.
    write(Path(sys.argv[1]), snapshot(Sizes(img_channels=1, c_dim=10, z_dim=64, channel_base=512, channel_max=32)))
