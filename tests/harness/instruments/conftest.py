"""NVML without a GPU: the real pynvml above a small library compiled here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_stub.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True, timeout=60)
    return library


class Nvml:
    """Sets the stub's variables."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.set(energy_mj=1_000_000, step_mj=50_000, power_mw=500_000, work_us=0)
        self.set_processes()

    def set(self, **values: int) -> None:
        for name, value in values.items():
            kind = ctypes.c_ulonglong if name.endswith("_mj") else ctypes.c_uint
            kind.in_dll(self._library, name).value = value

    def set_processes(self, *pids: int) -> None:
        """They compute on every device."""
        (ctypes.c_uint * 4).in_dll(self._library, "pids")[: len(pids)] = pids
        self.set(processes=len(pids))


@pytest.fixture
def nvml(nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """Cards aaaa (number 5) and bbbb (6, without an energy counter), and cccc, a slice of aaaa."""
    library = ctypes.CDLL(str(nvml_library))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return Nvml(library)
