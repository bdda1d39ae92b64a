"""DeepSpeed's builder reads the list of CUDA architectures that we leave for it."""

from __future__ import annotations

import os

import pytest

from backends.deepspeed.compile_ops import without_letters

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow  # DeepSpeed's import


def read(architectures: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What DeepSpeed's own builder makes of the list, as it would when it compiles."""
    from deepspeed.ops.op_builder.fused_adam import FusedAdamBuilder

    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    builder = FusedAdamBuilder()
    builder.jit_mode, builder._jit_arch_list = True, architectures
    builder.compute_capability_args()
    return os.environ["TORCH_CUDA_ARCH_LIST"]


@pytest.mark.parametrize(
    ("listed", "left"),
    [("9.0a", "9.0"), ("8.0;9.0a+PTX", "8.0;9.0+PTX"), ("9.0", "9.0"), ("10.0f 12.0a", "10.0 12.0"), ("", "")],
)
def test_letters_are_taken_off(listed: str, left: str) -> None:
    assert without_letters(listed) == left


def test_deepspeed_reads_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="0a"):  # when this does not fail any more, the letters may stay
        read("9.0a", monkeypatch)
    assert read(without_letters("9.0a"), monkeypatch) == "9.0+PTX"
