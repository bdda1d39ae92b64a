"""`harness page`: the detect-and-chat page of the original demonstration, on this machine only (extra ``gradio``)."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import tempfile
import threading
from typing import Any

import click

from harness.inference.load_model import load, model_options
from harness.job.declaration import JobError

HOST = "127.0.0.1"  # the model answers whoever asks: never to other machines
MISSING = "the page needs gradio, which is not installed: pip install 'anomaly-distbench[gradio]'"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("run", metavar="RUN|WEIGHTS")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="0 = any free port.")
@click.option("--category", default="", help="What the pictures show, filled in on the page.")
@model_options
def page(run: str, port: int, category: str, **options: Any) -> None:
    """Serve a page on this machine: a picture, good pictures to compare with, the map, a conversation."""
    if importlib.util.find_spec("gradio") is None:
        raise JobError(MISSING)
    port = _free(port)
    trained = load(run, **options)
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
        click.echo(f"http://{HOST}:{port}  (Ctrl-C ends it)")
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
