"""Reads and writes StyleGAN2 networks of other programs."""

from fastgan.interop.stylegan2 import StyleGAN2, load_stylegan2, official_state_dict

__all__ = ["StyleGAN2", "load_stylegan2", "official_state_dict"]
