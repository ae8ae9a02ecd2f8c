"""Datasets in the format of `tfds build`, for tests."""

import io
import json

import numpy as np

SIZES = [(4, 5, 3)] * 6


def prepare(data_dir, name="tiny", sizes=SIZES, labels=None, version="1.0.0", config=None, features=None, **info):
    """Writes a dataset with one PNG of each size in both the train and the test split; pixels are the image's index."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from etils import epath
    from PIL import Image
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    if features is None:
        image = tfds.features.Image(shape=(None, None, 3))
        features = {"image": image, "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    folder = epath.Path(data_dir) / name / (config or "") / version
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    features.save_config(folder)
    serializer = ExampleSerializer(features.get_serialized_info())
    for split in ("train", "test"):
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for i, size in enumerate(sizes):
            png = io.BytesIO()
            Image.fromarray(np.full(size, i, np.uint8)).save(png, "PNG")
            png.seek(0)
            example = {"image": png, "label": i % 2 if labels is None else labels[i]}
            example = features.encode_example({key: example[key] for key in features})
            writer.write(serializer.serialize_example(example))
        writer.close()
    splits = [
        {
            "name": split,
            "shardLengths": [str(len(sizes))],
            "numBytes": "1",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split in ("train", "test")
    ]
    dataset_info = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits, **info}
    (folder / "dataset_info.json").write_text(json.dumps(dataset_info))
    return str(data_dir)
