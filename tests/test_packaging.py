"""`trainer.conf` and `trainer.launch` lie outside the package's folder: every way of using the code must find them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import importlib, json, pkgutil, sys
import trainer, trainer.conf, trainer.launch
from importlib.resources import files
yaml = sorted(str(path) for path in files("trainer.conf").rglob("*.yaml"))
print(json.dumps({"package": trainer.__file__, "launch": trainer.launch.__file__, "yaml": yaml, "torch": "torch" in sys.modules}))
"""


def packages_in_tree() -> set[str]:
    """Every folder with modules that belongs to the import package."""
    roots = {"trainer": ROOT / "trainer", "trainer.conf": ROOT / "conf", "trainer.launch": ROOT / "launch"}
    found = set()
    for name, root in roots.items():
        for init in root.rglob("__init__.py"):
            inner = init.parent.relative_to(root).parts
            found.add(".".join((name, *inner)))
    return found


def test_every_package_is_named_in_pyproject() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(named) == packages_in_tree()
    assert named == sorted(named)


def test_modules_lie_in_packages() -> None:
    bare = {path.parent for path in (ROOT / "trainer").rglob("*.py") if not (path.parent / "__init__.py").exists()}
    assert not bare, "folders of modules without __init__.py are left out of a wheel"


def test_pytest_from_the_root_resolves_the_siblings() -> None:
    for name, folder in (("trainer.conf", "conf"), ("trainer.launch", "launch")):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        assert Path(spec.origin).is_relative_to(ROOT / folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy: setuptools builds in place, and a stale build/ would end up in the wheel.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("trainer", "conf", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(source)]
    subprocess.run(command, check=True, timeout=120)
    (built,) = out.glob("*.whl")
    return built


def test_a_wheel_used_from_another_folder_resolves_the_siblings(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    # -P and PYTHONPATH: the wheel's copy alone is found, neither this folder's nor the one installed for development.
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert Path(seen["package"]).is_relative_to(target) and Path(seen["launch"]).is_relative_to(target)
    assert {Path(path).relative_to(target / "trainer" / "conf") for path in seen["yaml"]} == {
        path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert not seen["torch"], "launch must not import torch"
    assert {"page.html", "page.css", "page.js"} <= {path.name for path in (target / "trainer" / "trying").iterdir()}
    files = {path.relative_to(target / "trainer") for path in (target / "trainer").rglob("*.py")}
    for folder, prefix in (("trainer", ""), ("conf", "conf"), ("launch", "launch")):
        for module in (ROOT / folder).rglob("*.py"):
            assert Path(prefix) / module.relative_to(ROOT / folder) in files
