"""Networks called as the training step calls them, and their parts."""

from torch.nn.utils.parametrize import ParametrizationList

from fastgan.models.spectral_norm import SpectralNorm


def activation_modules(network):
    """All modules that return activations, without those that return weights."""
    return [module for module in network.modules() if not isinstance(module, SpectralNorm | ParametrizationList)]


def trained_by(generator, discriminator, z, label=None):
    """Image, logits, and a scalar that every trained parameter has an effect on."""
    options = {"small": True} if "small" in generator.supports else {}
    images = generator(z, label, **options)
    if "reconstruct" not in getattr(discriminator, "supports", ()):
        logits, loss = discriminator(images, label), 0
    else:
        logits, loss = discriminator(images, label, reconstruct=True)
    return images[0] if options else images, logits, logits.square().sum() + loss
