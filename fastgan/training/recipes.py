"""Recipes: hyper-parameters that replace "auto", by architecture, objective and resolution. Imports no torch.

Numbers are the papers' from 128 pixels on for networks that grow or have styles, and from 64 on for r3gan and fastgan.
Smaller images are for trainings of minutes on a CPU: narrower networks, which see more images in the same time, and
higher learning rates, tuned on glyphs at 32x32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgan.training.growth import Schedule

Recipe = dict[str, Any]

# Defaults of all recipes: everything that only some architectures or objectives use is off.
PLAIN: Recipe = {
    "variant": "", "tanh": True, "noise": True, "pixel_shuffle": False, "mapping_layers": 0, "mapping_lr": 1.0,
    "synthesis_layers": 0, "margin": 0,
    "discriminator": "own", "projected_size": 0, "discriminator_norm": True, "discriminator_mapping_layers": 0,
    "loss": "nonsaturating", "optimizer": "adam", "batch": 64, "images": 100_000, "discriminator_steps": 1,
    "lr_g": 0.0002, "lr_d": 0.0002, "betas": (0.5, 0.999), "final_lr": 1.0, "lr_warmup": 0.0,
    "final_beta2": None,
    "ema_halflife": 10.0, "ema_rampup": 0.05, "style_mixing": 0.0,
    "r1_gamma": 0.0, "r2_gamma": 0.0, "final_gamma": 1.0, "r1_interval": 1,
    "gp_lambda": 0.0, "drift": 0.0, "clip": 0.0, "path_length": 0.0, "path_interval": 4,
    "blur": 0.0, "blur_images": 0, "augment": "none", "augment_p": 0.0,
    "grow_from": 0, "level_images": 0, "fade_images": 0, "level_batch": (), "level_lr": (),
}  # fmt: skip


def mlp(resolution: int) -> Recipe:
    """Goodfellow et al. 2014, with DCGAN's Adam instead of momentum.

    R1 is not in the paper. Without it the discriminator is soon saturated and the samples collapse to one.
    """
    return {
        "z_dim": 100, "channel_base": 150 * resolution, "channel_max": 150, "images": 600_000, "r1_gamma": 10.0,
    }  # fmt: skip


def dcgan(resolution: int) -> Recipe:
    """Radford et al. 2016, section 4; narrower below 64 pixels."""
    return {
        "z_dim": 100, "channel_base": 32 * resolution, "channel_max": 1024 if resolution >= 64 else 256,
        "batch": 128 if resolution >= 64 else 64,
    }  # fmt: skip


def cgan(resolution: int) -> Recipe:
    """Mirza and Osindero 2014; the convolutional variant is trained like DCGAN."""
    return {"z_dim": 100, "channel_base": 128 * resolution, "channel_max": 128}


def pggan(resolution: int) -> Recipe:
    """Karras et al. 2018, table 2 and appendix A: 600,000 images to train a level and as many to fade it in."""
    common = {
        "loss": "wgan-gp", "drift": 0.001, "discriminator_steps": 1, "lr_g": 0.001, "lr_d": 0.001, "betas": (0.0, 0.99),
        "grow_from": 4,
    }  # fmt: skip
    if resolution >= 128:
        return common | paper_growth(4, resolution) | {
            "tanh": False, "z_dim": 512, "channel_base": 16384, "channel_max": 512, "batch": 32, "images": 12_000_000,
        }  # fmt: skip
    return common | {
        "z_dim": 128, "channel_base": 32 * resolution, "channel_max": 128, "batch": 32, "lr_g": 0.002, "lr_d": 0.002,
        "images": 60_000, "level_images": 4_000, "fade_images": 6_000,
    }  # fmt: skip


def stylegan(resolution: int) -> Recipe:
    """Karras et al. 2019, appendix C: non-saturating loss with R1, growing from 8x8.

    Below 128 pixels it needs classes (`--labels`): without them, samples of glyphs collapse.
    """
    common = {
        "betas": (0.0, 0.99), "style_mixing": 0.9, "grow_from": 8,
    }  # fmt: skip
    if resolution >= 128:
        return common | paper_growth(8, resolution) | {
            "tanh": False, "z_dim": 512, "channel_base": 16384, "channel_max": 512, "batch": 32, "images": 25_000_000,
            "mapping_layers": 8, "mapping_lr": 0.01, "lr_g": 0.001, "lr_d": 0.001, "r1_gamma": 10.0,
        }  # fmt: skip
    return common | {
        "z_dim": 128, "channel_base": 32 * resolution, "channel_max": 64, "batch": 32, "images": 100_000,
        "mapping_layers": 2, "mapping_lr": 0.1, "lr_g": 0.005, "lr_d": 0.005, "r1_gamma": 1.0, "r1_interval": 8,
        "level_images": 5_000, "fade_images": 5_000,
    }  # fmt: skip


def stylegan2(resolution: int) -> Recipe:
    """Karras et al. 2020; the rule for gamma is StyleGAN2-ADA's."""
    common = {"betas": (0.0, 0.99), "style_mixing": 0.9}
    if resolution >= 128:
        return common | {
            "tanh": False, "z_dim": 512, "channel_base": 16384 if resolution < 512 else 32768, "channel_max": 512,
            "batch": 32, "mapping_layers": 8, "mapping_lr": 0.01, "lr_g": 0.002, "lr_d": 0.002, "images": 25_000_000,
            "r1_gamma": 0.0002 * resolution**2 / 32, "r1_interval": 16, "path_length": 2.0,
        }  # fmt: skip
    small = common | {
        "z_dim": 128, "channel_base": 512, "channel_max": 128, "mapping_layers": 2, "mapping_lr": 0.1, "lr_g": 0.005,
        "r1_interval": 8,
    }  # fmt: skip
    if resolution <= 32:
        return small | {"batch": 32, "lr_d": 0.01, "r1_gamma": 1.0, "images": 80_000}
    return small | {
        "noise": False, "pixel_shuffle": True, "batch": 16, "lr_d": 0.005, "r1_gamma": 4.0, "images": 250_000,
    }  # fmt: skip


def stylegan3(resolution: int) -> Recipe:
    """Karras et al. 2021, appendix G, variant t; gamma is the published code's at 128, 256, 512 and 1024 pixels.

    At 64 pixels it is tuned on emoji, with variant r.
    """
    common = {"betas": (0.0, 0.99), "variant": "t"}
    if resolution >= 128:
        return common | {
            "tanh": False, "z_dim": 512, "channel_base": 32768, "channel_max": 512,
            "synthesis_layers": 14, "margin": 10, "mapping_layers": 2, "mapping_lr": 0.01, "batch": 32,
            "lr_g": 0.0025, "lr_d": 0.002, "images": 25_000_000,
            "r1_gamma": 0.5 * (resolution / 128) ** 2, "r1_interval": 16,
        }  # fmt: skip
    return common | {
        "z_dim": 128, "channel_base": 16 * resolution, "channel_max": 64, "synthesis_layers": 6, "margin": 4,
        "mapping_layers": 2, "mapping_lr": 0.1, "batch": 8, "lr_g": 0.005, "lr_d": 0.01,
        "images": 24_000 if resolution <= 32 else 60_000, "r1_gamma": 1.0 if resolution <= 32 else 8.0,
        "r1_interval": 8,
    }  # fmt: skip


def stylegan3_r(resolution: int) -> Recipe:
    """Changes by variant r: twice the feature maps, and images blurred early on."""
    own = stylegan3(resolution)
    if resolution >= 128:
        changes = {"blur": 10.0, "blur_images": 200_000}
    else:
        changes = {"blur": 2.0, "blur_images": 4_000, "images": 16_000 if resolution <= 32 else 60_000}
    return (
        own | changes | {"channel_base": 2 * own["channel_base"], "channel_max": 2 * own["channel_max"], "variant": "r"}
    )


def r3gan(resolution: int) -> Recipe:
    """Huang et al. 2024, appendix: relativistic pairs, R1 and R2 at every step, everything annealed on a cosine."""
    common = {
        "z_dim": 64, "loss": "relativistic", "betas": (0.0, 0.9), "final_beta2": 0.99, "final_lr": 0.25,
        "final_gamma": 0.1,
    }  # fmt: skip
    if resolution >= 64:
        gamma = 2.0 if resolution < 256 else 150.0
        return common | {
            "tanh": False, "channel_base": 768 * 32, "channel_max": 768, "batch": 256, "images": 20_000_000,
            "lr_g": 0.0002, "lr_d": 0.0002, "r1_gamma": gamma, "r2_gamma": gamma, "ema_halflife": 500.0,
            "augment": "ramp", "augment_p": 0.3,
        }  # fmt: skip
    return common | {
        "channel_base": 16 * resolution, "channel_max": 128, "batch": 32, "images": 50_000,
        "lr_g": 0.001, "lr_d": 0.001, "r1_gamma": 0.5, "r2_gamma": 0.5,
    }  # fmt: skip


def fastgan(resolution: int) -> Recipe:
    """Liu et al. 2021, with the numbers of the authors' code; the EMA's half-life is that of a weight of 0.999.

    Below 64 pixels it is narrower, and has not been tuned.
    """
    common = {"z_dim": 256, "loss": "noisy-hinge", "augment": "diffaug"}
    if resolution >= 64:
        return common | {
            "channel_base": 8192, "channel_max": 1024, "batch": 8, "images": 400_000, "ema_halflife": 5.5,
        }  # fmt: skip
    return common | {"channel_base": 64 * resolution, "channel_max": 256, "batch": 16, "images": 100_000}


def projected(arch: str, resolution: int) -> Recipe:
    """Changes by the projected discriminator: the numbers of its authors' code for StyleGAN2; for FastGAN, the
    discriminators' learning rate is that of FastGAN there.

    There are no penalties, and nothing grows. The generator keeps its family's learning rate, except for families with
    styles. Sauer et al. enlarge all images to 224 pixels; here small ones, for CPUs, are enlarged to about twice their
    size.
    """
    styles = {"lr_g": 0.002} if arch in ("stylegan", "stylegan2", "stylegan3") else {}
    size = 64 if resolution < 64 else 128 if resolution < 128 else 224
    return styles | {
        "projected_size": size, "loss": "hinge", "lr_d": 0.0002 if arch == "fastgan" else 0.002, "betas": (0.0, 0.99),
        "style_mixing": 0.0, "augment": "diffaug", "augment_p": 0.0, "r1_gamma": 0.0, "r2_gamma": 0.0, "r1_interval": 1,
        "drift": 0.0, "path_length": 0.0, "blur": 0.0, "blur_images": 0,
        "grow_from": 0, "level_images": 0, "fade_images": 0, "level_batch": (), "level_lr": (),
    }  # fmt: skip


def paper_growth(start: int, resolution: int) -> Recipe:
    """The published schedule: 600,000 images to train each level and as many to fade it in."""
    schedule = Schedule.published(start, resolution, batch=32)
    return {
        "level_images": schedule.train_images,
        "fade_images": schedule.fade_images,
        "level_batch": tuple(schedule.batches[level] for level in schedule.levels),
        "level_lr": tuple(schedule.lr_factors[level] for level in schedule.levels),
    }


RECIPES: dict[str, Callable[[int], Recipe]] = {
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

# What an objective changes in a recipe that was made for another one.
OBJECTIVES: dict[str, Recipe] = {
    # Arjovsky et al. 2017, algorithm 1.
    "wgan": {
        "discriminator_steps": 5, "clip": 0.01, "optimizer": "rmsprop", "lr_g": 0.00005, "lr_d": 0.00005,
        "r1_gamma": 0.0, "r2_gamma": 0.0,
    },
    # Gulrajani et al. 2017, algorithm 1; no batch norm in the discriminator (section 4 there).
    "wgan-gp": {
        "discriminator_steps": 5, "discriminator_norm": False, "lr_g": 0.0001, "lr_d": 0.0001, "betas": (0.0, 0.9),
        "r1_gamma": 0.0, "r2_gamma": 0.0,
    },
    # Huang et al. 2024, section 3: without both penalties it need not converge.
    "relativistic": {"r1_gamma": 1.0, "r2_gamma": 1.0, "r1_interval": 1, "discriminator_norm": False},
}  # fmt: skip


def recipe(arch: str, resolution: int, loss: str = "auto", discriminator: str = "own", variant: str = "auto") -> Recipe:
    """Values that replace "auto", by option name. loss: "auto" for the objective of architecture and discriminator."""
    family = stylegan3_r if (arch, variant) == ("stylegan3", "r") else RECIPES[arch]
    own = PLAIN | family(resolution)
    if discriminator == "projected":
        own |= projected(arch, resolution)
    if loss not in ("auto", own["loss"]):
        own |= {"loss": loss} | OBJECTIVES.get(loss, {})
        own |= {"drift": 0.0} if loss != "wgan-gp" else {}
    if own["loss"] == "wgan-gp":
        own["gp_lambda"] = 10.0
    return own
