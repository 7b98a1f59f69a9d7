"""The textbook networks of benchmarks compute the same as fastgan's: images, losses and gradients."""

import pytest
import torch

from bench import textbook_models
from bench.textbook_training import Trainer
from fastgan import models
from fastgan.losses import OBJECTIVES, PathLength
from fastgan.penalties import logits_and_squared_grad, wgan_gp, zero_centered_penalty

FAMILIES = {
    "stylegan2 grouped": ({"arch": "stylegan2", "num_classes": 3}, "grouped"),
    "stylegan2 scaled": ({"arch": "stylegan2"}, "scaled"),
    "pggan": ({"arch": "pggan"}, "scaled"),
    "pggan with classes": ({"arch": "pggan", "num_classes": 3}, "scaled"),
    "dcgan": ({"arch": "dcgan", "variant": "upsample"}, "scaled"),
}
BATCH = 8


@pytest.fixture(params=FAMILIES)
def pair(request):
    """Our networks and the textbook's with the same random weights; real images and labels."""
    config, modulation = FAMILIES[request.param]
    config = models.ModelConfig(resolution=16, channels=3, z_dim=12, channel_base=128, channel_max=16, **config)
    torch.manual_seed(0)
    ours, theirs = models.build(config), textbook_models.build(config, modulation)
    for our, their in zip(ours, theirs, strict=True):
        for name, parameter in our.named_parameters():
            if name.endswith(("strength", "bias")):  # so that noise and biases have an effect
                torch.nn.init.normal_(parameter, std=0.3)
        their.load_state_dict(our.state_dict(), strict=False)
        assert dict(our.named_parameters()).keys() == dict(their.named_parameters()).keys()
    real = torch.randn(BATCH, 3, 16, 16)
    label = torch.arange(BATCH) % config.num_classes if config.num_classes else None
    return ours, theirs, real, label


def gradients(loss, network):
    network.zero_grad()
    loss.backward()
    return gradients_of(network)


def gradients_of(network):
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in sorted(network.named_parameters())]
    return torch.cat([gradient.flatten() for gradient in gradients])


def close(ours, theirs):
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), f"{ours.norm()} and {theirs.norm()}"


def seeded(function):
    torch.manual_seed(1)
    return function()


def test_images_are_equal(pair):
    (generator, _), (textbook, _), _, label = pair
    z = torch.randn(BATCH, 12)
    close(seeded(lambda: generator(z, label)), seeded(lambda: textbook(z, label)))


def test_style_mixing_is_equal(pair):
    (generator, _), (textbook, _), _, label = pair
    if not hasattr(textbook, "styles"):
        pytest.skip("no styles")
    z = torch.randn(BATCH, 12)
    ours, theirs = (seeded(lambda g=g: g(z, label, style_mixing=0.9)) for g in (generator, textbook))
    close(ours, theirs)


@pytest.mark.parametrize("loss", ["nonsaturating", "wgan-gp"])
def test_discriminator_loss_and_gradients_are_equal(pair, loss):
    (_, discriminator), theirs, real, label = pair
    fake = torch.randn_like(real)
    trainer = Trainer(theirs, lr=0.0, loss=loss)
    expected_loss = seeded(lambda: trainer.discriminator_phase(real, fake, label))
    expected = gradients_of(trainer.discriminator)

    torch.manual_seed(1)
    objective = OBJECTIVES["wasserstein" if loss == "wgan-gp" else loss]
    fake_logits, real_logits = discriminator(fake, label), discriminator(real, label)
    value = objective.discriminator_fake(fake_logits) + objective.discriminator_real(real_logits)
    if loss == "wgan-gp":
        value = value + 0.001 * real_logits.square().mean() + 10 * wgan_gp(discriminator, real, fake, label)
    close(value.detach(), expected_loss)
    close(gradients(value, discriminator), expected)


def test_r1_and_its_gradients_are_equal(pair):
    (_, discriminator), theirs, real, label = pair
    trainer = Trainer(theirs, lr=0.0, gamma=3.0, r1_interval=16)
    expected_loss = trainer.r1_phase(real, label)
    expected = gradients_of(trainer.discriminator)
    _, squares = logits_and_squared_grad(discriminator, real, label)
    penalty = 3.0 * 16 * zero_centered_penalty(squares)
    close(penalty.detach(), expected_loss)
    close(gradients(penalty, discriminator), expected)


@pytest.mark.parametrize("loss", ["nonsaturating", "wgan-gp"])
def test_generator_loss_and_gradients_are_equal(pair, loss):
    (generator, discriminator), theirs, _, label = pair
    z = torch.randn(BATCH, 12)
    trainer = Trainer(theirs, lr=0.0, loss=loss)
    expected_loss = seeded(lambda: trainer.generator_phase(trainer.fakes(z, label), label))
    expected = gradients_of(trainer.generator)

    objective = OBJECTIVES["wasserstein" if loss == "wgan-gp" else loss]
    value = seeded(lambda: objective.generator(discriminator(generator(z, label), label)))
    close(value.detach(), expected_loss)
    close(gradients(value, generator), expected)


def test_path_length_and_its_gradients_are_equal(pair, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.randn(like.shape))  # independent of the memory format
    (generator, _), theirs, _, label = pair
    if not hasattr(generator, "synthesize"):
        pytest.skip("no styles")
    z = torch.randn(BATCH, 12)
    trainer = Trainer(theirs, lr=0.0, path_weight=2.0)
    expected_loss = seeded(lambda: trainer.path_phase(z, label))
    expected = gradients_of(trainer.generator)

    torch.manual_seed(1)
    ws = generator.styles(z, label)
    penalty = 2.0 * 4 * PathLength()(generator.synthesize(ws), ws)
    close(penalty.detach(), expected_loss)
    close(gradients(penalty, generator), expected)


def test_a_step_updates_both_networks_and_the_ema(pair):
    _, theirs, real, label = pair
    trainer = Trainer(theirs, lr=0.01, gamma=1.0, path_weight=2.0 if hasattr(theirs[0], "styles") else 0.0)
    before = [{k: v.clone() for k, v in m.named_parameters()} for m in (*theirs, trainer.average)]
    trainer(real, label)
    for network, old in zip((*theirs, trainer.average), before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in network.named_parameters())
