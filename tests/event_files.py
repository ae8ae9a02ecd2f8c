"""A reader of TensorBoard event files that is independent of the writer under test."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """Yields the events of all files in a folder, oldest file first."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, offset = path.read_bytes(), 0
        while offset < len(data):
            # A record is the payload's length (8 bytes), its checksum (4), the payload, and its checksum (4).
            (length,) = struct.unpack_from("<Q", data, offset)
            yield Event.FromString(data[offset + 12 : offset + 12 + length])
            offset += 16 + length


def values(folder):
    """Returns `(tag, step, value)` of all summaries in a folder."""
    return [(value.tag, event.step, value) for event in events(folder) for value in event.summary.value]
