"""Feature extractor Inception-v3 of 2015, which defines FID, KID and the Inception score, through torch-fidelity.

torch-fidelity (extra "fid") has the network and the resizing of the TensorFlow original, bit by bit. The user supplies
the file with the weights (see `registry.find_inception_weights`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.files import file_digest
from fastgan.metrics.features import FeatureExtractor
from fastgan.metrics.registry import INCEPTION, INCEPTION_SHA256, INCEPTION_URL, require_packages


class Inception(FeatureExtractor):
    """Features are the outputs of the last pooling, [N, 2048], of images resized to 299x299 as TensorFlow 1 does.

    `original` is true only if the file is byte for byte the one of published numbers.
    Raises UserError if torch-fidelity is missing, or `path` does not have weights of this network.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu", *, batch: int = 32):
        require_packages(INCEPTION)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            digest = file_digest(path)
            if digest != INCEPTION_SHA256:
                # torch-fidelity may execute pickled code; a file that this call accepts has none.
                torch.load(path, map_location="cpu", weights_only=True)
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
            )
        except Exception as error:  # the file, the archive, the unpickler, or a tensor of another shape
            why = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"{path}: cannot be read as Inception's weights ({why}); download {INCEPTION_URL}"
            ) from None
        self.original = digest == INCEPTION_SHA256
        super().__init__(network, f"inception-v3-{digest[:16]}", device, batch)

    def features(self, images: Tensor) -> Tensor:
        return self.network(images.movedim(3, 1))[0]

    def score(self, features: np.ndarray) -> tuple[float, float]:
        """The Inception score (Salimans et al. 2016): mean and standard deviation over ten parts of the images.

        features: [N, 2048], shuffled in a fixed random order. As in the original code, without the bias of the last
        layer.
        """
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        logits = torch.from_numpy(features) @ self.network.fc.weight.T.cpu()
        found = isc_features_to_metric(logits, splits=min(10, len(logits)))
        return found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD]
