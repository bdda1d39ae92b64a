"""How the page of `harness model serve` is served: on this machine only, without traces elsewhere."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from harness.inference.load_model import load
from harness.job.declaration import JobError

HOST = "127.0.0.1"  # the model answers whoever asks: never to other machines
MISSING = "the page needs gradio, which is not installed: pip install 'anomaly-distbench[gradio]'"


def serve(source: str, *, port: int, category: str, say: Callable[[str], None], **options: Any) -> None:
    """Serves the page of a run or weights file until Ctrl-C or SIGTERM.

    Args:
        source: run folder or weights file; `options` as of `load`.
        port: TCP port on this machine, 0 = any free one.
        category: what the pictures show, filled in on the page; may be empty.
        say: gets the line with the page's address.

    Raises:
        JobError: gradio is not installed, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise JobError(MISSING)
    port = _free(port)
    trained = load(source, **options)
    with tempfile.TemporaryDirectory(prefix="harness-page-") as uploads:
        _quiet(uploads)
        from harness.inference.web_page import HEAD, build, theme

        blocks = build(trained, category)
        blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            max_file_size="20mb",
            footer_links=[],
            theme=theme(),
            head=HEAD,
        )
        say(f"http://{HOST}:{port}  (Ctrl-C ends it)")
        try:
            _wait()
        finally:
            blocks.close(verbose=False)


def _free(port: int) -> int:
    """`port`, or for 0 one that is free now. Raises JobError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise JobError(f"port {port}: {error.strerror}: use --port N, or --port 0 for any free one") from None
        return int(probe.getsockname()[1])


def _quiet(uploads: str) -> None:
    """No analytics, no version check, uploads in our own folder: gradio reads these when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = uploads
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _wait() -> None:
    """Until Ctrl-C or a polite signal."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1.0):
        pass
