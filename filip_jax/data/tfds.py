"""TensorFlow Datasets as a source: prepared data read through ArrayRecord; TensorFlow is never imported."""

import tensorflow_datasets as tfds

from filip_jax.data.record import Record
from filip_jax.errors import UserError


class Tfds:
    """One split of a data set that was prepared with file_format="array_record".

    Args:
        path: the folder of the prepared version, which holds dataset_info.json.
        split: "train", "test[:1000]" …
        image: name of the image feature.
        caption: name of a text or class-label feature; a label's name becomes the caption.

    Raises:
        UserError: no prepared data there, or no such split or feature.
    """

    def __init__(self, *, path: str, split: str, image: str = "image", caption: str = "caption"):
        self.path, self.image, self.caption = path, image, caption
        try:
            builder = tfds.builder_from_directory(path)
            self.features = builder.info.features
            missing = [name for name in (image, caption) if name not in self.features]
            if missing:
                raise UserError(f"tfds: {path!r} has no feature {missing[0]!r}; it has {', '.join(self.features)}")
            self.data = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
        except (OSError, ValueError, NotImplementedError) as error:
            raise UserError(f"tfds: path={path!r}, split={split!r}: {' '.join(str(error).split())}") from error
        if isinstance(self.features[caption], tfds.features.ClassLabel):
            self.class_names = list(self.features[caption].names)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        features = self.data[index]
        caption = features[self.caption]
        label = None
        if hasattr(self, "class_names"):
            label, caption = int(caption), self.class_names[int(caption)]
        text = caption.decode("utf-8") if isinstance(caption, bytes) else caption
        return Record(f"{self.path}/{index}", features[self.image], text, label)

    def caption(self, index: int) -> str:
        return self[index].caption
