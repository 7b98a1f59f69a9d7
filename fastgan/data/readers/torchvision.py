"""Data sets of torchvision."""

from __future__ import annotations

import inspect
import operator

from fastgan.data.cache import default_cache_dir
from fastgan.data.images import UnusableImage, reason
from fastgan.data.readers.base import Reader, ReaderOptions, import_extra
from fastgan.errors import UserError

PREFIX = "torchvision:"


class TorchvisionReader(Reader):
    """A data set by the name of its class, downloaded into the cache if torchvision can download it."""

    accepts = "torchvision:NAME"

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.startswith(PREFIX)

    def __init__(self, spec: str, options: ReaderOptions):
        name = spec.removeprefix(PREFIX)
        datasets = import_extra("torchvision.datasets", "torchvision", "torchvision", spec)
        if name not in datasets.__all__ or not inspect.isclass(getattr(datasets, name)):
            raise UserError(f"{spec}: there is no such data set; there are CIFAR10, STL10, Flowers102, ...")
        make = getattr(datasets, name)
        parameters = inspect.signature(make.__init__).parameters
        arguments: dict[str, object] = {}
        if "root" in parameters:
            root = default_cache_dir() / "torchvision" / name
            root.mkdir(parents=True, exist_ok=True)
            arguments["root"] = str(root)
        if "train" in parameters:
            arguments["train"] = options.split == "train"
        for parameter in ("split", "image_set"):
            if parameter in parameters:
                arguments[parameter] = options.split
        if "download" in parameters:
            arguments["download"] = True
        try:
            self._dataset = make(**arguments)
            self.names = [f"{name}[{number}]" for number in range(len(self._dataset))]
        except Exception as error:  # the network, a split that does not exist, a class that needs other arguments
            raise UserError(f"{spec}: {reason(error)}; see --split, or unpack it as a folder") from error
        classes = getattr(self._dataset, "classes", None)
        if isinstance(classes, list | tuple) and classes and all(isinstance(each, str) for each in classes):
            self.class_names = list(classes)
        self.state = [name, options.split, len(self.names)]

    def _read(self, number):
        from PIL import Image

        try:
            found = self._dataset[number]
        except Exception as error:
            raise UnusableImage(f"cannot be read ({reason(error)})") from error
        image, target = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(image, Image.Image):
            raise UnusableImage(f"is a {type(image).__name__}, not an image")
        try:
            label = operator.index(target)  # an integer of Python, NumPy or torch
            return image, label if label >= 0 else None
        except (TypeError, ValueError):
            if target is not None and not self.notes:
                self.notes = [f"targets that are {type(target).__name__}, not class numbers, were not read"]
            return image, None
