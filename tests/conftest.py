"""What every test stands on: a cache of this session's own, one thread a process, no key and no hub; and the folder of real data."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Set at import, before anything is started: every process of every test inherits it. The cache is shared by the tests of a session,
# so that a corpus is prepared once; and it is new, so that none is left from other code. A worker of pytest-xdist has its master's.
_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
_CACHE = os.environ["TRAINER_CACHE"] if _IS_WORKER else tempfile.mkdtemp(prefix="shardloom-tests-")
os.environ.update(TRAINER_CACHE=_CACHE, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", NETRC=os.devnull)
# Neither a key of the person at the keyboard nor the variables of a surrounding cluster job belong to a test.
for _name in ("WANDB_API_KEY", "TRAINER_PLUGINS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"):
    os.environ.pop(_name, None)


def pytest_unconfigure() -> None:
    if not _IS_WORKER:
        shutil.rmtree(_CACHE, ignore_errors=True)


# Of a module, as hypothesis refuses what is made for one test.
@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where to compute: on the CPU, and once more on a GPU where there is one."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return str(request.param)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data: TRAINER_DATA, else ../shared/data."""
    folder = Path(os.environ.get("TRAINER_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist; name the folder in TRAINER_DATA")
    return folder
