"""Average power spectra of images whose spectrum is known."""

import math

import pytest
import torch

from fastgan.metrics.spectra import average_power, slices


def test_white_noise_is_flat():
    torch.manual_seed(0)
    power = average_power(3 + 0.5 * torch.randn(4, 100, 3, 16, 16), mean=3.0, std=0.5)
    assert power.shape == (16, 16) and (power - 1).abs().max() < 0.2


def test_a_wave_is_a_peak_at_its_frequency():
    x = torch.arange(32) / 32
    wave = torch.sin(2 * math.pi * 6 * x).expand(1, 1, 32, 32)
    horizontal, diagonal = slices(average_power([wave]))
    assert len(horizontal) == len(diagonal) == 16
    assert horizontal.argmax() == 6 and horizontal.max() > 1e4 * horizontal[12:].max() and diagonal.argmax() == 0
    both = wave * wave.transpose(2, 3)
    assert slices(average_power([both]))[1].argmax() == 6


def test_batches_do_not_matter():
    images = torch.randn(6, 2, 8, 8)
    torch.testing.assert_close(average_power(images.split(1)), average_power([images]))
    with pytest.raises(ValueError, match="batches is empty"):
        average_power([])
