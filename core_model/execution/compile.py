"""Transformer blocks by torch.compile: fewer launches, and element-wise work that reads and writes memory once.

Each block is compiled by itself, as torchtitan does: all blocks of a kind share one compilation, an engine's hooks stay
outside at the parameters, and the names of the weights stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from core_model.language.llama import Layer
from core_model.language.token_loss import TokenLoss
from core_model.vision.vit import Block

BLOCKS = (Layer, Block, TokenLoss)


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Lets torch.compile have every block of `model` at its next call; returns how many. 0 for a model whose blocks are
    another library's. backend: as of torch.compile (another than its default is for tests).

    Dynamo's DDPOptimizer is switched off for the process: it cuts a compiled graph where one of DDP's buckets ends, so
    that the exchange can begin, which blocks compiled one by one already allow. The cuts would give DDP other kernels,
    and other rounding, than every other engine has.
    """
    torch._dynamo.config.optimize_ddp = False
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def eager() -> AbstractContextManager[Any]:
    """While this context holds, compiled blocks run as written: evaluation and generation come with many shapes."""
    return torch.compiler.set_stance("force_eager")
