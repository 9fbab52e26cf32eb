"""The same few pairs, written as every kind of data that filip_jax reads."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from filip_jax.data.array_record import encode_record
from filip_jax.data.record import Caption, Record


def picture(number, format="PNG"):
    """An encoded picture of one colour, which is the number."""
    file = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), number, np.uint8)).save(file, format)
    return file.getvalue()


def texts(number):
    """The texts of pair `number`, by origin."""
    return {"txt": f"picture {number}", "de.txt": f"Bild {number}"}


def key(number):
    return f"{number:09d}"


def tar(path, members):
    """A tar of (name, bytes), or of ready TarInfos."""
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if data is not None:
                info.size = len(data)
            out.addfile(info, io.BytesIO(data or b""))


def members(numbers):
    """What img2dataset puts into a tar."""
    for n in numbers:
        yield f"{key(n)}.png", picture(n)
        for origin, text in texts(n).items():
            yield f"{key(n)}.{origin}", text.encode()
        yield (
            f"{key(n)}.json",
            json.dumps({"caption": texts(n)["txt"], "other": {"long": [f"a {n}", f"b {n}"]}}).encode(),
        )


def write_webdataset(folder, shards):
    for shard, numbers in enumerate(shards):
        tar(folder / f"{shard:05d}.tar", members(numbers))
    return dict(name="webdataset", path=str(folder), caption_keys=("txt", "de.txt"))


def write_folder(folder, shards):
    for numbers in shards:
        for n in numbers:
            (folder / f"{key(n)}.png").write_bytes(picture(n))
            for origin, text in texts(n).items():
                (folder / f"{key(n)}.{origin}").write_text(text)
    return dict(name="folder", path=str(folder), caption_keys=("txt", "de.txt"))


def write_array_record(folder, shards):
    for shard, numbers in enumerate(shards):
        writer = ArrayRecordWriter(str(folder / f"{shard:05d}.array_record"), "group_size:1")
        for n in numbers:
            captions = tuple(Caption(text, origin) for origin, text in texts(n).items())
            writer.write(encode_record(Record(key(n), picture(n), captions)))
        writer.close()
    return dict(name="array_record", path=str(folder))


def write_examples(folder, shards):
    """ArrayRecord files of tf.train.Examples."""
    for shard, numbers in enumerate(shards):
        writer = ArrayRecordWriter(str(folder / f"{shard:05d}.array_record"), "group_size:1")
        for n in numbers:
            example = tf_example.Example()
            for name, text in {"image": picture(n), **{o: t.encode() for o, t in texts(n).items()}}.items():
                example.features.feature[name].bytes_list.value.append(text)
            writer.write(example.SerializeToString())
        writer.close()
    return dict(name="array_record", path=str(folder), caption_keys=("txt", "de.txt"))


def write_parquet(folder, shards, of_image=picture):
    for shard, numbers in enumerate(shards):
        columns = {"image": [of_image(n) for n in numbers], "key": [key(n) for n in numbers]}
        columns |= {origin: [texts(n)[origin] for n in numbers] for origin in texts(0)}
        pq.write_table(pa.table(columns), folder / f"{shard:05d}.parquet", row_group_size=3)
    return dict(name="parquet", path=str(folder), key="key", caption_keys=("txt", "de.txt"))


def write_hugging_face(folder, shards):
    """Parquet with structs of bytes and path."""
    return write_parquet(folder, shards, lambda n: {"bytes": picture(n), "path": "x.png"})


def write_parquet_of_paths(folder, shards):
    write_folder(folder, shards)
    return write_parquet(folder, shards, lambda n: f"{key(n)}.png")


def write_jsonl(folder, shards):
    write_folder(folder, shards)
    for shard, numbers in enumerate(shards):
        lines = [json.dumps({"image": f"{key(n)}.png", "id": key(n), **texts(n)}) for n in numbers]
        (folder / f"{shard:05d}.jsonl").write_text("\n".join(lines) + "\n")
    return dict(name="jsonl", path=str(folder), key="id", caption_keys=("txt", "de.txt"))


def write_csv(folder, shards, name="csv", **options):
    write_folder(folder, shards)
    for shard, numbers in enumerate(shards):
        with (folder / f"{shard:05d}.{name}").open("w", newline="") as file:
            rows = csv.writer(file, **options)
            rows.writerow(["image", "id", *texts(0)])
            rows.writerows([f"{key(n)}.png", key(n), *texts(n).values()] for n in numbers)
    return dict(name="csv", path=str(folder), key="id", caption_keys=("txt", "de.txt"))


def write_tsv(folder, shards):
    return write_csv(folder, shards, "tsv", delimiter="\t")


def write_arrow(folder, shards):
    """As `datasets` saves them, three rows in a batch."""
    for shard, numbers in enumerate(shards):
        columns = {"image": [{"bytes": picture(n), "path": None} for n in numbers], "key": [key(n) for n in numbers]}
        table = pa.table(columns | {origin: [texts(n)[origin] for n in numbers] for origin in texts(0)})
        with pa.OSFile(str(folder / f"data-{shard:05d}-of-{len(shards):05d}.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table, max_chunksize=3)
    return dict(name="arrow", path=str(folder), key="key", caption_keys=("txt", "de.txt"))


WRITERS = [
    write_webdataset,
    write_folder,
    write_array_record,
    write_examples,
    write_parquet,
    write_hugging_face,
    write_parquet_of_paths,
    write_jsonl,
    write_csv,
    write_tsv,
    write_arrow,
]
