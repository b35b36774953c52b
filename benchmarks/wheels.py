"""Collect what a GPU machine without a network lacks: wheels for CPython 3.12 on x86-64 Linux.

    make wheels                                     (into wheels/)
    .venv/bin/python benchmarks/wheels.py FOLDER

Such a machine is taken to have PyTorch, Triton, transformers, accelerate, PEFT, PyArrow, rich and ninja with what they need (THERE). The
rest of what the project needs is found in the metadata of the environment this runs in, in the versions installed here. On the machine:

    python3 -m pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Named one by one: what its own versions of these need is not what the versions here need. None of them is replaced there.
THERE = {
    "accelerate", "filelock", "fsspec", "hf-xet", "huggingface-hub", "jinja2", "markdown-it-py", "markupsafe", "mdurl", "mpmath",
    "networkx", "ninja", "numpy", "packaging", "peft", "pip", "psutil", "pyarrow", "pygments", "pyyaml", "regex", "rich", "safetensors",
    "setuptools", "sympy", "tokenizers", "torch", "tqdm", "transformers", "triton", "typer", "typing-extensions",
}  # fmt: skip
TARGET = {"python_version": "3.12", "python_full_version": "3.12.3", "platform_machine": "x86_64", "sys_platform": "linux"}
# pip takes a platform by its exact name, so every one that such a machine accepts is named.
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
LIMIT_BYTES = 60_000_000


def missing(root: str) -> set[str]:
    """The distributions that a root needs and the target lacks, the root included, by canonical name."""
    found: set[str] = set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in found or name in THERE:
            continue
        found.add(name)
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(TARGET | {"extra": ""}):
                waiting.append(str(canonicalize_name(requirement.name)))
    return found


def collect(folder: Path) -> list[Path]:
    """Download each missing wheel, or build it where there is only a source distribution (pure Python ones, such as DeepSpeed's)."""
    folder.mkdir(parents=True, exist_ok=True)
    # Lightning is a peer that benchmarks/gpu.sh runs beside ours.
    names = sorted((missing("shardloom") | missing("lightning")) - {"shardloom"})
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    target = ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp", *(f"--platform={name}" for name in PLATFORMS)]
    for name in names:
        pinned = f"{name}=={version(name).split('+')[0]}"
        print(pinned, flush=True)
        quiet = subprocess.run([*pip, "download", "--no-deps", *target, "-d", str(folder), pinned], capture_output=True, text=True)
        if quiet.returncode == 0:
            continue
        with tempfile.TemporaryDirectory() as built:
            subprocess.run([*pip, "wheel", "--no-deps", "-w", built, pinned], check=True)
            (wheel,) = Path(built).glob("*.whl")
            if not wheel.name.endswith("-none-any.whl"):
                raise SystemExit(f"{wheel.name}: neither a wheel for the target nor pure Python\n{quiet.stderr}")
            (folder / wheel.name).write_bytes(wheel.read_bytes())
    return sorted(folder.glob("*.whl"))


def main() -> int:
    wheels = collect(Path(sys.argv[1] if len(sys.argv) > 1 else "wheels"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB")
    if size > LIMIT_BYTES:
        print(f"more than {LIMIT_BYTES / 1e6:.0f} MB: too much to carry", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
