"""A replica as the driver's loop sees it: what it is busy with, and when it last got on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.cluster import Call, Pulse, ReplicaHandle
from pipeline.leases import Lease


@dataclass(eq=False)
class WatchedReplica:
    handle: ReplicaHandle
    call: Call
    """The call it is busy with; None when idle."""
    state: Literal["placing", "starting", "idle", "working", "lost"]
    changed: float
    """When its pulse last changed, or its state."""
    launched: float = field(default_factory=time.monotonic)
    pulse: Call = None
    next_pulse: float = 0.0
    beat: Pulse | None = None
    lease: Lease | None = None
    description: dict[str, Any] = field(default_factory=dict)
    failures: int = 0
    """Shards that failed on it in a row."""

    def pulsed(self, beat: Pulse, now: float, pause: float) -> int:
        """Take its pulse in, and wait `pause` seconds for the next; returns the batches it has answered since."""
        self.pulse, self.next_pulse = None, now + pause
        before = self.beat.batches if self.beat else 0
        if beat != self.beat:
            self.beat, self.changed = beat, now
        if self.state == "placing":
            self.state, self.changed = "starting", now
        return beat.batches - before
