r"""What all tabs share: where things stand, and how a computation becomes an event.

An event's function returns `(numbers, picture, code)`: a dictionary for the API, HTML for the eye, and the lines of Python that
give the same numbers. Each is a named endpoint.
"""

import html
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr

from . import pictures
from .models import Model
from .running import Stopped
from .texts import Refusal, T, both, say

# Of all events that evaluate a network, together: one core each.
MODEL = {"concurrency_id": "model", "concurrency_limit": 2}
MAX_SEED = 2**31 - 1


def guarded(function: Callable) -> Callable:
    r"""An event's function whose refusals are messages to the visitor, in the visitor's language."""

    def message(error: Exception) -> gr.Error:
        text = error.text() if isinstance(error, Refusal) else str(error)
        return gr.Error(html.escape(text, quote=False), title=say("refused"), print_exception=False)

    parameters = list(inspect.signature(function).parameters.values())

    def check(values: tuple) -> None:
        for parameter, value in zip(parameters, values):
            if value is None and parameter.default is parameter.empty:
                raise Refusal("empty", name=parameter.name)

    @wraps(function)
    def call(*values):
        try:
            check(values)
            return function(*values)
        except ValueError as error:
            raise message(error) from error

    @wraps(function)
    def iterate(*values) -> Iterator:
        try:
            check(values)
            yield from function(*values)
        except Stopped:
            return
        except ValueError as error:
            raise message(error) from error

    return iterate if _is_generator(function) else call


def for_the_page(function: Callable) -> Callable:
    r"""An event's function that is no tool for agents, who have their own (`tools.py`): it answers with pages of HTML."""
    function._mcp_type = "page"  # Gradio's server lists what is a "tool", or says nothing
    return function


def _is_generator(function: Callable) -> bool:
    return inspect.isgeneratorfunction(getattr(function, "func", function))


def refuse_addresses(demo: gr.Blocks) -> None:
    r"""Take no address in place of a file, in any input: Gradio would fetch it, and ask a public name server for its host."""
    for block in demo.blocks.values():
        _refuse_addresses(block)


def _refuse_addresses(block) -> None:
    to_cache = block.async_move_resource_to_block_cache

    async def local_only(path):
        if "://" in str(path):
            raise gr.Error(say("no_addresses"), print_exception=False)
        return await to_cache(path)

    block.async_move_resource_to_block_cache = local_only


def refuse_malformed(demo: gr.Blocks) -> None:
    r"""Answer values that fit no input, or too few of them, by a sentence; Gradio prints a traceback for each such call."""
    preprocess = demo.preprocess_data

    async def checked(event, inputs, *arguments, **options):
        try:
            return await preprocess(event, inputs, *arguments, **options)
        except Exception as error:
            if isinstance(error, gr.Error):  # a component's own refusal
                refusal, refusal.print_exception = error, False
            else:
                refusal = gr.Error(say("malformed", count=len(event.inputs)), title=say("refused"), print_exception=False)
            tell_operator(f"/{event.api_name}", error)
            raise refusal from error

    demo.preprocess_data = checked


def tell_operator(place: str, error: Exception) -> None:
    r"""A line on stderr about a call that was refused; what it holds comes from outside, and is quoted."""
    print(f"{place!r:.100} refused: {' '.join(str(error).split())!r:.300}", file=sys.stderr)


class Tab:
    r"""One tab: its equation and a few sentences, controls at the left, results at the right, code and numbers below.

    Args:
        name: of the tab, and of its endpoint.
        endpoint: where the two differ.
    """

    def __init__(self, name: str, endpoint: str | None = None):
        self.name, self.endpoint = name, endpoint or name
        # What another model changes: components, each with its update, and the event that is due after them, if there is one.
        self.following: list[tuple[gr.components.Component, Callable[[Model], Any]]] = []
        self.after_model: tuple[Callable, Sequence, Sequence] | None = None
        gr.Markdown(T(f"{name}_text"), latex_delimiters=LATEX, elem_classes="vlb-text")
        self._row = gr.Row(equal_height=False)
        with self._row:
            self._controls = gr.Column(scale=1, min_width=270)
            with gr.Column(scale=2, min_width=300, elem_classes="vlb-result"):
                self.picture = gr.HTML(label="Picture", elem_id=f"{name}-picture", padding=False)
        self._below = gr.Column()
        with gr.Accordion(T("code"), open=False):
            self.code = gr.Code(language="python", interactive=False, label="Code", show_label=False, elem_id=f"{name}-code")
        with gr.Accordion(T("numbers"), open=False):
            self.numbers = gr.JSON(label="Numbers", show_label=False, elem_id=f"{name}-numbers", max_height=320)

    @property
    def outputs(self) -> list:
        return [self.numbers, self.picture, self.code]

    def controls(self) -> gr.Column:
        r"""A context for the controls."""
        return self._controls

    def below(self) -> gr.Column:
        r"""A context for what stands between the results and the code."""
        return self._below

    def seed(self, value: int = 0) -> gr.Number:
        return gr.Number(value, label=T("seed"), precision=0, minimum=0, maximum=MAX_SEED, elem_id=f"{self.name}-seed")

    def number(self, model: Model, value: int = 0) -> gr.Slider:
        r"""Chooses one of a model's images."""
        last = len(model.examples) - 1
        slider = gr.Slider(0, last, value, step=1, label=T("image"), elem_id=f"{self.name}-number")
        self.follows(slider, lambda chosen: gr.update(maximum=len(chosen.examples) - 1, value=0))
        return slider

    def follows(self, component: gr.components.Component, update: Callable[[Model], Any]) -> None:
        r"""Have a component changed whenever another model is chosen.

        Args:
            component: any of the tab's.
            update: called with the model; returns the component's new value, or a `gr.update`.
        """
        self.following.append((component, update))

    def show(self, values: Sequence[Any]) -> None:
        r"""What is there before anybody has done anything."""
        for component, value in zip(self.outputs, values):
            component.value = component.postprocess(value) if component is not self.code else value

    def live(self, compute: Callable, inputs: Sequence, model: gr.Dropdown | None = None) -> None:
        r"""Computed anew whenever a control moves; of quick moves the last one counts.

        Args:
            compute: the event's function.
            inputs: its components, but for `model`.
            model: the choice of a model, if it comes with changes to `inputs` (`follows`): the first of the function's
                arguments, and computed anew once all has followed.
        """
        event = for_the_page(guarded(compute)), inputs if model is None else [model, *inputs], self.outputs
        if model is not None:
            self.after_model = event
        gr.on(
            [component.change for component in inputs],
            *event,
            api_name=self.endpoint,
            api_description=_description(compute),
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_id="light",
            concurrency_limit=4,
        )

    def long(self, compute: Callable, inputs: Sequence) -> None:
        r"""Computed when asked for, with results on the way, until it is done or cancelled. Of another model it says so."""
        self.follows(self.picture, lambda chosen: pictures.note(both("model_changed")))
        with self._controls, gr.Row():
            run = gr.Button(T("run"), variant="primary", elem_id=f"{self.name}-run", min_width=100)
            cancel = gr.Button(T("cancel"), elem_id=f"{self.name}-cancel", min_width=100)
        event = run.click(
            for_the_page(guarded(compute)),
            inputs,
            self.outputs,
            api_name=self.endpoint,
            api_description=_description(compute),
            show_progress="hidden",
            **MODEL,
        )
        # On a narrow page the results stand above or below: whoever asks for them wants to see them.
        run.click(None, js=SHOW.format(f"{self.name}-picture"), api_visibility="private")
        cancel.click(None, cancels=[event], api_visibility="private")


SHOW = "() => {{ if (innerWidth <= 600) document.getElementById('{}').scrollIntoView({{behavior: 'smooth'}}); }}"
LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]


def _description(compute: Callable) -> str:
    r"""For the API's page: the docstring of what is called."""
    return inspect.cleandoc(getattr(compute, "func", compute).__doc__ or "")
