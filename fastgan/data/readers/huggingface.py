"""Data sets of Hugging Face's `datasets`."""

from __future__ import annotations

from pathlib import Path

from fastgan.data.images import MAX_BYTES, TOO_LARGE, UnusableImage, read_regular, reason
from fastgan.data.readers.base import Reader, ReaderOptions, choose_name, import_extra, number_labels
from fastgan.errors import UserError

PREFIX = "hf:"


class HuggingFaceReader(Reader):
    """A data set by its name on the hub, or the folder that `save_to_disk` wrote.

    Without given columns: the first with the feature `Image`, and the first with the feature `ClassLabel`.
    """

    accepts = "hf:NAME of Hugging Face"

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.startswith(PREFIX)

    def __init__(self, spec: str, options: ReaderOptions):
        name = spec.removeprefix(PREFIX)
        datasets = import_extra("datasets", "huggingface", "datasets", spec)
        try:
            if any((Path(name) / file).exists() for file in ("state.json", "dataset_dict.json")):
                found = datasets.load_from_disk(name)
                found = found[options.split] if isinstance(found, datasets.DatasetDict) else found
            else:
                found = datasets.load_dataset(name, split=options.split)
        except Exception as error:
            raise UserError(f"{spec} cannot be loaded, split {options.split}: {reason(error)}") from error
        features = found.features
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        image = choose_name(spec, "--image-column", options.image_column, images, list(features))
        if image not in images:
            raise UserError(
                f"{spec} has no column of images{f' {image}' if image else ''}; it has {', '.join(features)}"
            )
        label = choose_name(spec, "--label-column", options.label_column, classes, list(features))
        if label in classes:
            self.class_names = list(features[label].names)
            self.labels = [None if each is None or each < 0 else int(each) for each in found[label]]
        elif label is not None:
            texts = ["" if each is None else str(each) for each in found[label]]
            self.labels, self.class_names = number_labels(texts, spec)
        self._rows = found.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        self._column = image
        self.names = [f"{name}[{number}]" for number in range(len(found))]
        self.state = [name, options.split, found._fingerprint, len(found)]

    def _read(self, number):
        try:
            cell = self._rows[number][self._column]
            data = cell["bytes"] if cell["bytes"] is not None else read_regular(cell["path"])
        except UnusableImage:
            raise
        except Exception as error:
            raise UnusableImage(f"cannot be read ({reason(error)})") from error
        if len(data) > MAX_BYTES:
            raise UnusableImage(TOO_LARGE)
        return data
