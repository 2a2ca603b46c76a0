"""Reads what Weights & Biases writes offline: LevelDB's log format, behind a header of seven bytes."""

import json
from pathlib import Path

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(file: Path):
    """The payloads of a `.wandb` file, whole ones only: a kill may have cut the last one."""
    data, at, begun = file.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        payload = data[at + HEADER : at + HEADER + size]
        if len(payload) < size or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        begun = payload if kind in (FULL, FIRST) else begun + payload
        if kind in (FULL, LAST):
            yield begun
        at += HEADER + size


def offline_runs(run_dir: Path):
    """Of each start, in order: the run's id, project and config, and the rows that it logged."""
    from wandb.proto import wandb_internal_pb2 as proto

    found = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        about, rows = {}, []
        for payload in chunks(file):
            record = proto.Record.FromString(payload)
            kind = record.WhichOneof("record_type")
            if kind == "run" and not about:
                config = {one.key: json.loads(one.value_json) for one in record.run.config.update}
                about = {"id": record.run.run_id, "project": record.run.project, "config": config}
            if kind == "history":
                items = record.history.item
                rows.append(
                    {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}
                )
        found.append((about, rows))
    return found
