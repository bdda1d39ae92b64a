"""What the page of `harness model serve` shows and does. Imports gradio: only for those who asked for the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from harness.inference.detection import judgement
from harness.inference.load_model import Trained
from harness.inference.overlay import overlay
from harness.inference.session import Look, Session, picture_paths, read_pictures, trimmed_ask
from mpi.errors import UserError

# The model looks at one picture at a time: its features are kept between map and answer.
ONE = {"concurrency_id": "model", "concurrency_limit": 1}
HEAD = '<meta name="description" content="Anomaly detection with a conversation about the picture">'
FONTS = ["system-ui", "sans-serif"]  # of the machine: the page loads nothing from elsewhere


@dataclass
class Visit:
    """One browser window: the picture it looks at and the conversation about it."""

    look: Look
    conversation: Any


def theme() -> Any:
    """gradio's default look without fonts from the network."""
    return gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"])


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The left half of the page: what is to be looked at."""

    picture: Any
    normal: Any
    category: Any
    look: Any


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """The right half: what was found, and the conversation."""

    result: Any
    overlay: Any
    talk: Any
    question: Any
    send: Any
    clear: Any


def build(trained: Trained, category: str) -> Any:
    """The gradio Blocks of a trained model."""
    with gr.Blocks(title="Anomaly detection", analytics_enabled=False) as blocks:
        visit = gr.State(None)
        gr.Markdown(f"# Is anything wrong in this picture?\nModel: `{Path(trained.name).name}` ({trained.job.preset})")
        with gr.Row():
            with gr.Column():
                asked = _left(category, ", ".join(trained.categories))
            with gr.Column():
                shown = _right()

        def on_look(path: str | None, good: list[str] | None, name: str) -> Any:
            session, found = _message_of_errors(lambda: _look(trained, path, good or [], name.strip()))
            return found, _words(found.look, session), _drawn(session, found.look), []

        inputs = [asked.picture, asked.normal, asked.category]
        asked.look.click(on_look, inputs, [visit, shown.result, shown.overlay, shown.talk], **ONE)
        for trigger in (shown.send.click, shown.question.submit):
            trigger(on_ask, [shown.question, visit, shown.talk], [shown.question, shown.talk, visit], **ONE)
        for trigger in (shown.clear.click, shown.talk.clear):
            trigger(on_clear, [visit], [shown.talk, visit], **ONE)
    return blocks


def _left(category: str, categories: str) -> _Asked:
    """Makes the left half, inside its column. category: filled in; categories: shown where it is empty."""
    picture = gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,  # the file as it is: re-encoding would change the score
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        alt_text="The picture that is looked at",
        elem_id="picture",
    )
    normal = gr.File(
        label="Good pictures of the same object (optional, for the few-shot map)",
        file_count="multiple",
        file_types=["image"],
        elem_id="normal",
    )
    what = gr.Textbox(label="What it shows (optional)", value=category, placeholder=categories, elem_id="category")
    look = gr.Button("Look", variant="primary", elem_id="look")
    return _Asked(picture=picture, normal=normal, category=what, look=look)


def _right() -> _Shown:
    """Makes the right half, inside its column."""
    result = gr.Textbox(label="Result", interactive=False, lines=3, elem_id="result")
    # "share", among gradio's own buttons, would send the picture to a public site
    shown = gr.Image(
        label="Map over the picture",
        type="pil",
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        alt_text="Picture with the suspicious region outlined, beside it the anomaly map with its legend",
        elem_id="map",
    )
    talk = gr.Chatbot(label="Conversation", render_markdown=False, height=300, buttons=["copy"], elem_id="talk")
    question = gr.Textbox(label="Question", placeholder="Is there any defect?", elem_id="question")
    with gr.Row():
        send = gr.Button("Ask", elem_id="ask")
        clear = gr.Button("Forget the conversation", elem_id="clear")
    return _Shown(result=result, overlay=shown, talk=talk, question=question, send=send, clear=clear)


def on_ask(text: str, found: Visit | None, turns: list[dict[str, Any]]) -> Any:
    """Answers a question: the emptied question field, the conversation, the visit."""
    if found is None:
        raise gr.Error("First choose a picture and press Look.")
    if not text.strip():
        return "", turns, found
    reply, _ = _message_of_errors(lambda: trimmed_ask(found.conversation, text.strip()))
    new = [{"role": "user", "content": text}, {"role": "assistant", "content": reply or "(no answer)"}]
    return "", [*turns, *new], found


def on_clear(found: Visit | None) -> Any:
    """Forgets the conversation."""
    if found is not None:
        found.conversation.turns.clear()
    return [], found


def _look(trained: Trained, path: str | None, good: list[str], category: str) -> tuple[Session, Visit]:
    """Looks at an uploaded picture, beside uploaded good ones if there are any."""
    if not path:
        raise gr.Error("First choose a picture.")
    (found,) = picture_paths([path])
    good_paths = picture_paths(good)
    normal = read_pictures(good_paths, trained, beside=[found])
    session = Session(trained, normal=normal)
    name = session.category_of(None, category)
    (look,) = session.look(read_pictures([found], trained, beside=good_paths), [found.name], [name])
    return session, Visit(look=look, conversation=session.talk(look))


def _message_of_errors(act: Any) -> Any:
    """What `act` returns; a mistake of the user's becomes a message on the page."""
    try:
        return act()
    except Exception as error:
        if isinstance(error, UserError):
            raise gr.Error(str(error)) from None
        raise


def _words(look: Look, session: Session) -> str:
    return (
        f"Score {look.score:.4f} ({session.branch} map), highest at the {look.peak}\n"
        f"Judged: {judgement(look)}\nAnswer: {look.answer}"
    )


def _drawn(session: Session, look: Look) -> Image.Image:
    return overlay(look.picture, look.grid, session.scale([look]))
