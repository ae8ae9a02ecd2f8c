"""TensorBoard's event files, read by their format and not by what wrote them."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """Of all files, by their time: a length, its checksum, the event, its checksum."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def values(folder):
    return [(value.tag, event.step, value) for event in events(folder) for value in event.summary.value]
