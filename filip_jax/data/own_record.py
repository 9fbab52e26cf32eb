"""Records of ours, as `filip data convert` writes them.

A record is MAGIC, the length of a JSON text as 4 bytes (little endian), the text, and the
encoded image. The text is {"key", "shard", "captions": [[origin, text], …], "crc32": of the image}, and
where captions have keys of their own "text_keys": [key, …], one for each of them.
"""

import json
import struct
import zlib

from filip_jax.data.record import BadRecord, Caption, Record, is_caption

MAGIC = b"filip1\r\n"


def encode_record(record: Record) -> bytes:
    """Return a record of ours. Raises a TypeError if its image is not encoded."""
    if not isinstance(record.image, bytes):
        raise TypeError(f"record {record.key}: its image is an array; encode it")
    head = {
        "key": record.key,
        "shard": record.shard,
        "captions": [[caption.origin, caption.text] for caption in record.captions],
        "crc32": zlib.crc32(record.image),
    }
    if any(caption.key for caption in record.captions):
        head["text_keys"] = [caption.key for caption in record.captions]
    text = json.dumps(head, ensure_ascii=False).encode("utf-8", "replace")
    return MAGIC + struct.pack("<I", len(text)) + text + record.image


def decode_record(data: bytes, check: bool = True) -> tuple[str, tuple[Caption, ...], bytes]:
    """(key, captions, image) of a record of ours; the image's checksum is compared if asked.

    Raises:
        BadRecord: it is damaged.
    """
    try:
        (length,) = struct.unpack_from("<I", data, len(MAGIC))
        start = len(MAGIC) + 4
        head, image = json.loads(data[start : start + length].decode()), data[start + length :]
        text_keys = head.get("text_keys", [""] * len(head["captions"]))
        pairs = zip(head["captions"], text_keys, strict=True)
        captions = tuple(Caption(text, origin, key=key) for (origin, text), key in pairs)
        key, crc32 = head["key"], head["crc32"]
        if not all(isinstance(text, str) for text in (key, *(t for c in captions for t in (c.text, c.origin, c.key)))):
            raise TypeError("its keys, origins and captions must be texts")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadRecord(f"the record is damaged: {error}") from error
    if check and zlib.crc32(image) != crc32:
        raise BadRecord("the image's checksum is wrong")
    return key, tuple(caption for caption in captions if is_caption(caption.text)), image
