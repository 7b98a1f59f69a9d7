"""Features of the Inception-v3 of 2015 that FID, KID and the Inception score were defined with, through torch-fidelity.

torch-fidelity (extra "fid") has the network and the resizing of the TensorFlow original, bit by bit; its weights are a
file that the person brings (`choice.find_inception_weights`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.metrics.choice import INCEPTION, INCEPTION_SHA256, INCEPTION_URL, require_packages
from fastgan.metrics.features import Extractor


class Inception(Extractor):
    """Features are those of the last pooling, [N, 2048], of images resized to 299x299 as TensorFlow 1 did.

    `original` is false unless the weights are, to the byte, those that published numbers come from.
    Raises UserError if torch-fidelity is missing, or `path` has no weights of this network.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu", *, batch: int = 32):
        require_packages(INCEPTION)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != INCEPTION_SHA256:
                # torch-fidelity executes what is pickled. What this reads has nothing to execute in it.
                torch.load(path, map_location="cpu", weights_only=True)
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
            )
        except Exception as error:  # of the system, the archive, the unpickler, or a tensor that does not fit
            why = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{path}: cannot be read as Inception's weights ({why}); they are to be had from {INCEPTION_URL}"
            ) from None
        self.original = digest == INCEPTION_SHA256
        super().__init__(network, f"inception-v3-{digest[:16]}", device, batch)

    def features(self, images: Tensor) -> Tensor:
        return self.network(images.movedim(3, 1))[0]

    def score(self, features: np.ndarray) -> tuple[float, float]:
        """The Inception score (Salimans et al. 2016): mean and standard deviation over ten parts of the images.

        Of features [N, 2048], in a random order that is always the same. As in the original code, the bias of the last
        layer is left out.
        """
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        logits = torch.from_numpy(features) @ self.network.fc.weight.T.cpu()
        found = isc_features_to_metric(logits, splits=min(10, len(logits)))
        return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]
