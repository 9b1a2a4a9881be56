r"""The variational bound in a browser: a Gradio Space that needs nothing but this folder and its requirements.

python app.py                        # the models in checkpoints/
python app.py --model my/pipeline    # another one besides, from a folder (or, if you mean it, from the Hub)
"""

import argparse
import gc
import os
import re
import sys
from collections.abc import Sequence

# Before gradio is imported: nothing is told to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import torch
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from vlb_demo import drawing, pictures
from vlb_demo.layout import Tab, guarded, refuse_addresses, refuse_malformed, tell_operator
from vlb_demo.models import Models
from vlb_demo.tabs import find_tabs
from vlb_demo.texts import I18N, T
from vlb_demo.tools import Tools
from vlb_demo.uploads import MAX_BYTES

TITLE = "How likely is this picture? · ddpm_vlb"
DAY = 24 * 60 * 60
# Visitors whose pages Gradio remembers, a third of a MiB each; of itself 10,000. Who is forgotten finds the page as it began.
MAX_SESSIONS = 128


def build(models: Models) -> gr.Blocks:
    r"""The page."""
    # Uploads do not stay.
    with gr.Blocks(
        title=TITLE,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(DAY // 24, DAY // 24),
    ) as demo:
        gr.Markdown(T("title"), elem_classes="vlb-title")
        if report := models[models.names[0]].report:
            parts = (report[key] for key in ("prior", "transitions_total", "decoder"))
            gr.HTML(pictures.three_parts(*parts), elem_id="sign", padding=False)
        model = gr.Dropdown(models.names, value=models.names[0], label=T("model"), elem_id="model", render=False)
        tabs = []
        with gr.Tabs():
            for name, module in find_tabs().items():
                with gr.Tab(T(name), id=name, elem_id=f"tab-{name}"):
                    tabs.append(Tab(name, module.ENDPOINT))
                    module.build(tabs[-1], models, model)
        _follow(models, model, tabs)
        Tools(models).add()
    refuse_addresses(demo)
    refuse_malformed(demo)
    return demo


def _follow(models: Models, model: gr.Dropdown, tabs: Sequence[Tab]) -> None:
    r"""When another model is chosen: sliders that reach over its images and timesteps, and no results of the former one."""
    following = [entry for tab in tabs for entry in tab.following]

    def follow(name: str) -> list:
        chosen = models[name]
        return [update(chosen) for _, update in following]

    private = {"api_visibility": "private", "show_progress": "hidden"}
    followed = model.change(guarded(follow), [model], [component for component, _ in following], **private)
    for tab in tabs:
        if tab.after_model is not None:
            followed.then(*tab.after_model, **private)


class NoAddresses:
    r"""Gradio's route for files takes addresses too, and looks their hosts up before it refuses them. Here none gets there."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        answer = self.app
        if scope["type"] == "http" and re.search(r"(?:file|proxy|stream)=\s*\w+:", scope["path"]):
            answer = PlainTextResponse("Not allowed.", status_code=403)
        await answer(scope, receive, send)


class NoSuchEndpoint:
    r"""Answers calls of endpoints that there are none of, which Gradio's routes stumble over."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        try:
            await self.app(scope, receive, send)
        except (KeyError, FnIndexInferError) as error:
            if scope["type"] != "http" or scope["method"] != "POST":
                raise
            tell_operator(scope["path"], error)
            await PlainTextResponse("No such endpoint.", status_code=404)(scope, receive, send)


def launch(demo: gr.Blocks, **options):
    r"""Start the server; `options` as `gr.Blocks.launch`."""
    demo.queue(max_size=32, default_concurrency_limit=4)
    return demo.launch(
        i18n=I18N,
        css=pictures.CSS + drawing.CSS,
        head=pictures.HEAD,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        max_file_size=MAX_BYTES,
        state_session_capacity=MAX_SESSIONS,
        show_error=False,
        ssr_mode=False,
        share=False,
        mcp_server=True,
        footer_links=["api", "settings"],
        # What visitors did is kept nowhere, in their browsers neither: it would slow the page down with every move.
        run_history=False,
        app_kwargs={"middleware": [Middleware(NoAddresses), Middleware(NoSuchEndpoint)]},
        **options,
    )


def main() -> None:
    r"""From the command line, and on a Space."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", action="append", default=[], metavar="FOLDER_OR_REPO", help="a model besides those beside this file"
    )
    parser.add_argument("--host", help="address to listen at (default: this machine only; on a Space, all)")
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860 on")
    arguments = parser.parse_args()
    # Networks this small are no faster on more threads, and visitors come one beside the other.
    torch.set_num_threads(1)
    named = [name.strip() for name in os.environ.get("DDPM_VLB_MODELS", "").split(",") if name.strip()]
    try:
        models = Models((*named, *arguments.model))
    except (ValueError, OSError) as error:
        sys.exit(f"app.py: {' '.join(str(error).split())}")
    demo = build(models)
    # What is there by now stays: looking for garbage in it would stop a visitor for half a second now and then.
    gc.collect()
    gc.freeze()
    launch(demo, server_name=arguments.host, server_port=arguments.port)


if __name__ == "__main__":
    main()
