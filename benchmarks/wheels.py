"""What a GPU machine without a network lacks: wheels for CPython 3.12 on x86-64 Linux, collected here and installed there.

    make wheels                                        here, with a network: collect them in wheels/
    python3 benchmarks/wheels.py --into SITE wheels    there, as benchmarks/gpu.sh does: install into SITE what is missing

Such a machine is taken to have PyTorch, Triton, transformers, accelerate, PEFT, PyArrow, rich and ninja with what they need (THERE). The
rest is what pyproject.toml names, but for LEFT_OUT, with what that needs by the metadata of the environment this runs in, in the versions
installed here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence, Set
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
# Named one by one: what its own versions of these need is not what the versions here need. None of them is replaced there.
THERE = {
    "accelerate", "filelock", "fsspec", "hf-xet", "huggingface-hub", "jinja2", "markdown-it-py", "markupsafe", "mdurl", "mpmath",
    "networkx", "ninja", "numpy", "packaging", "peft", "pip", "psutil", "pyarrow", "pygments", "pyyaml", "regex", "rich", "safetensors",
    "setuptools", "sympy", "tokenizers", "torch", "tqdm", "transformers", "triton", "typer", "typing-extensions",
}  # fmt: skip
# What pretraining a GPT or BERT on text imports nowhere: figures of tasks on examples, hubs and trackers. They are most of the bytes.
LEFT_OUT = {"datasets", "rouge-score", "sacrebleu", "scikit-learn", "scipy", "sentencepiece", "seqeval", "wandb"}
TESTS = {"pytest", "hypothesis"}
TARGET = {"python_version": "3.12", "python_full_version": "3.12.3", "platform_machine": "x86_64", "sys_platform": "linux"}
# pip takes a platform by its exact name, so every one that such a machine accepts is named.
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
LIMIT_BYTES = 60_000_000


def named() -> tuple[list[Requirement], list[Requirement]]:
    """What benchmarks/gpu.sh cannot do without, and what it takes where it is there: peers, the counter of energy. By pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [Requirement(text) for text in project["dependencies"]]
    needed += [requirement for requirement in map(Requirement, extras["dev"]) if requirement.name in TESTS]
    return [each for each in needed if _name(each) not in LEFT_OUT], [Requirement(text) for text in extras["bench"]]


def missing(roots: Sequence[Requirement], there: Set[str] = frozenset(THERE)) -> set[str]:
    """The distributions that these need and the target lacks, by canonical name. there: what it has."""
    found: set[str] = set()
    waiting = [_name(root) for root in roots]
    while waiting:
        name = waiting.pop()
        if name in found or name in there:
            continue
        found.add(name)
        for requirement in map(Requirement, distribution(name).requires or []):
            if requirement.marker is None or requirement.marker.evaluate(TARGET | {"extra": ""}):
                waiting.append(_name(requirement))
    return found


def _name(requirement: Requirement) -> str:
    return str(canonicalize_name(requirement.name))


def collect(folder: Path) -> list[Path]:
    """Download each missing wheel, or build it where there is only a source distribution (pure Python ones, such as DeepSpeed's)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(missing([*named()[0], *named()[1]]))
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


def lacking(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """Where this runs: the wheels of a folder that are to be installed; what is needed but neither there nor among them; and what is there,
    in another version than pyproject.toml wants."""
    needed, welcome = named()
    wheels = {str(canonicalize_name(path.name.split("-")[0])): path for path in sorted(folder.glob("*.whl"))}
    unmet = {_name(each): str(each) for each in [*needed, *welcome] if not _met(each)}
    wanted = [path for name, path in wheels.items() if name in unmet or not _met(Requirement(name))]
    without = [name for name in map(_name, needed) if name in unmet and name not in wheels]
    other = [name for name in without if _met(Requirement(name))]
    return wanted, [unmet[name] for name in without if name not in other], [unmet[name] for name in other]


def _met(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def install(folder: Path, site: Path) -> int:
    """Into a folder for PYTHONPATH, what is lacking. Returns 2 where something is not in the folder of wheels either."""
    wheels, without, other = lacking(folder)
    if other:
        # Said, and tried: what is wanted is more than what a benchmark uses.
        print(f"{sys.executable} has another version than wanted: {', '.join(other)}", file=sys.stderr)
    if without:
        print(
            f"{sys.executable} lacks {', '.join(without)}, which {folder} does not have: run 'make wheels' on a machine with a network, "
            "and bring wheels/ along",
            file=sys.stderr,
        )
        return 2
    if not wheels:
        return 0
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-index", "--no-deps", "--no-compile"]
    return subprocess.run([*pip, "--target", str(site), *map(str, wheels)]).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("wheels"), help="of the wheels")
    parser.add_argument("--into", type=Path, metavar="SITE", help="install what is missing here, instead of collecting")
    given = parser.parse_args()
    if given.into:
        return install(given.folder, given.into)
    wheels = collect(given.folder)
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB")
    if size > LIMIT_BYTES:
        print(f"more than {LIMIT_BYTES / 1e6:.0f} MB: too much to carry", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
