"""Reads and writes StyleGAN2 and StyleGAN3 networks of other programs."""

from fastgan.interop.official import OfficialNetworks, load_official, official_state_dict

__all__ = ["OfficialNetworks", "load_official", "official_state_dict"]
