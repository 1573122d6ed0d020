"""What a running container may do, read from the kernel rather than from its manifest."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.containers import Podman

USER = "65532"


def confinement(podman: Podman, container: str) -> None:
    """Holds that the container runs as our user, without a capability, on a root that it cannot write."""
    first = Path(f"/proc/{podman.inspect(container)['State']['Pid']}")
    status = dict(line.split(":\t", 1) for line in (first / "status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == [USER] * 4, f"{container} runs as {status['Uid']}"
    assert status["Gid"].split() == [USER] * 4, f"{container} runs in group {status['Gid']}"
    for sort in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[sort], 16) == 0, f"{container} has {sort} {status[sort]}"
    assert status["NoNewPrivs"] == "1", f"{container} may gain privileges"
    mounts = [line.split() for line in (first / "mounts").read_text().splitlines()]
    root = next(mount for mount in mounts if mount[1] == "/")
    assert "ro" in root[3].split(","), f"{container} may write its root"
