"""A session written for TensorBoard, read back from the records of its event files."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from orchestrator.views.report import write_tensorboard
from tests.simulated import Fragile, night


def scalars(folder) -> dict:
    """By tag, the value at each step: a record is its length, a checksum, an event, a checksum."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        at += 16 + length
    return found


def test_scores_and_curves_are_read_back(tmp_path):
    session = night(tmp_path / "s" / "session.db", experiments=12, lab=Fragile, repairs=0)

    write_tensorboard(session, tmp_path / "board")

    found = scalars(tmp_path / "board/session")
    scored = {f.experiment: f for f in session.state.results if f.scores}
    assert found["val_bpb"] == pytest.approx({number: f.val_bpb for number, f in scored.items()}, rel=1e-6)
    assert min(found["best"].values()) == found["best"][max(scored)]
    curve = scored[1].scores[0].curve
    loss = scalars(tmp_path / "board/0001")["loss"]
    assert loss[round(100 * curve[-1].progress)] == pytest.approx(curve[-1].loss, rel=1e-6)
