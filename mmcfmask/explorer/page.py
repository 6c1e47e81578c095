"""The page of the explorer: its layout in Gradio, and what its controls do."""

from __future__ import annotations

import errno
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..counterfactual import FILLS, MASKS
from ..errors import ConfigError, MissingPackageError, UserError, error_message
from ..reporting import save_figure
from .images import Source
from .markup import answers_html, draw_look, message_html, stages_html, title_html
from .session import MAPS, Choice, Explorer

try:
    import gradio as gr
except ImportError as error:
    raise MissingPackageError(f"mmcfmask explore needs gradio ({error}): pip install 'mmcfmask[explore]'") from None

PORTS = range(7860, 7960)
SHOWN = 12  # images to choose from
THRESHOLD, PROBABILITY, SHARE = 'Threshold', 'Probability', 'Share of patches'
STYLE = Path(__file__).with_name('page.css')


def launch(
    explorer: Explorer, host: str = '127.0.0.1', port: int | None = None, browser: bool = False
) -> tuple[gr.Blocks, str]:
    """Serve the page, in threads. Neither it nor the server asks another host for anything.

    Args:
        explorer (Explorer): Computes what the page shows.
        host (str): The address to listen on; '0.0.0.0' is every address of the machine.
        port (int, optional): None: the first free one from 7860.
        browser (bool): Open the page in a browser.

    Returns:
        tuple[gr.Blocks, str]: The page, which ``close()`` ends, and its address.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    port = find_port(host, port)
    demo = Page(explorer).demo
    look = gr.themes.Default(primary_hue='blue', font=['system-ui', 'sans-serif'], font_mono=['monospace'])
    _, url, _ = demo.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        theme=look,
        css_paths=STYLE,
    )
    return demo, url


def find_port(host: str, port: int | None = None) -> int:
    """The port, or the first free one from 7860, at an address.

    Raises:
        ConfigError: The address cannot be listened on. (Gradio would try every port for seconds.)
    """
    if not host or ':' in host:
        raise ConfigError(f'--host {host!r}: give a name or an IPv4 address')
    for number in PORTS if port is None else [port]:
        try:
            with socket.create_server((host, number)):
                return number
        except (OSError, OverflowError) as error:
            if port is None and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                continue
            where = f'--host {host}' + ('' if port is None else f' --port {port}')
            raise ConfigError(f'cannot listen on {where}: choose another one ({error})') from None
    raise ConfigError(f'--host {host}: all ports from {PORTS[0]} to {PORTS[-1]} are taken, choose another --port')


class Page:
    """The controls, and what they do.

    What a person has chosen is a :class:`Choice` in the state of the page. A control changes a value of it, and the
    results are computed again.

    Args:
        explorer (Explorer): Computes what the page shows.

    Attributes:
        demo (gr.Blocks): The page.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.folder = tempfile.TemporaryDirectory(prefix='mmcfmask-explorer-')  # of saved pictures
        with gr.Blocks(analytics_enabled=False, title='mmcfmask explorer', delete_cache=(3600, 86400)) as self.demo:
            gr.HTML(title_html(explorer), elem_id='title')
            self.choice, self.shown, self.number = gr.State(None), gr.State([]), gr.State(0)
            with gr.Row():
                with gr.Column(scale=1, min_width=300, elem_id='controls'):
                    self._lay_out_controls()
                with gr.Column(scale=3, min_width=600):
                    self.message = gr.HTML(elem_id='message')
                    self.stages = gr.HTML(elem_id='stages')
                    self.answers = gr.HTML(elem_id='answers')
                    with gr.Row():
                        self.redraw = gr.Button('Draw again', size='sm', elem_id='redraw')
                        self.save = gr.Button('Save the picture', size='sm', elem_id='save')
                        self.file = gr.DownloadButton('Saved picture', visible='hidden', elem_id='file')
                    self._lay_out_images()
            self._connect()

    # Layout

    def _lay_out_controls(self) -> None:
        explorer, towers = self.explorer, list(self.explorer.towers)
        fine_tuned = len(towers) > 1
        classes = [(name, index) for index, name in enumerate(explorer.classes)]
        options = ', '.join(f'{key}={value!r}' for key, value in explorer.map_options.items())
        changes = ' and '.join(name.replace('_', ' ') for name in explorer.changes)
        self.label = gr.Dropdown(classes, label='Class', elem_id='class')
        self.mask = gr.Radio(list(MASKS), label='Mask', elem_id='mask')
        self.fill = gr.Radio(list(FILLS), label='Fill', elem_id='fill')
        self.by = gr.Radio([THRESHOLD, SHARE], label='Mask by', elem_id='by')
        self.value = gr.Slider(0, 1, step=0.01, label=THRESHOLD, buttons=[], elem_id='value')
        self.changes = gr.Checkbox(
            True, label=f'With the {changes} of the config', visible=bool(changes), elem_id='changes'
        )
        self.map = gr.Radio(list(MAPS), label='Relevance map', info=f'cleaned: {options}', elem_id='map')
        self.tower = gr.Radio(towers, label='Relevance of', visible=fine_tuned, elem_id='tower')
        self.alpha = gr.Slider(
            0,
            1,
            step=0.05,
            label='WiSE-FT α',
            buttons=[],
            info='0: pretrained weights, 1: fine-tuned weights',
            visible=fine_tuned,
            elem_id='alpha',
        )
        self.controls = [
            self.label, self.mask, self.fill, self.by, self.value, self.changes, self.map, self.tower, self.alpha
        ]  # fmt: skip

    def _lay_out_images(self) -> None:
        names = self.explorer.shelf.names
        with gr.Row(elem_id='pick', equal_height=True):
            self.target = gr.Radio(
                ['Image', 'Donor'], value='Image', label='Choose the', scale=2, min_width=170, elem_id='target'
            )
            self.set = gr.Dropdown(
                names, label='from the data set', scale=2, min_width=140, visible=bool(names), elem_id='set'
            )
            self.more = gr.Button('Other images', size='sm', min_width=110, visible=bool(names), elem_id='more')
            self.upload = gr.File(label='or a file', height=80, scale=2, min_width=170, elem_id='upload')
        self.gallery = gr.Gallery(
            label='Images of the data set',
            show_label=False,
            columns=SHOWN,
            height='auto',
            allow_preview=False,
            buttons=[],
            interactive=False,
            visible=bool(names),
            format='png',
            elem_id='gallery',
        )

    # Events

    def _connect(self) -> None:
        results = [self.choice, self.message, self.stages, self.answers]
        images = [self.message, self.number, self.shown, self.gallery]
        given = [self.choice, *self.controls]
        quiet = dict(show_progress='hidden')
        self.demo.load(self.start, None, [self.set, *images[1:], *results, *self.controls])
        for control in (self.label, self.value, self.changes, self.map, self.tower, self.alpha):
            control.input(self.change, given, results, trigger_mode='always_last', **quiet)
        for control in (self.mask, self.fill, self.by):
            control.input(self.change_kind, given, [*results, self.value], trigger_mode='always_last', **quiet)
        self.redraw.click(self.draw_again, self.choice, results, **quiet)
        self.set.select(self.show_set, self.set, images, **quiet)
        self.more.click(self.show_set, [self.set, self.number], images, **quiet)
        every = [*results, *self.controls]
        self.gallery.select(self.pick, [self.choice, self.target, self.shown], every, **quiet)
        self.upload.upload(self.open_file, [self.choice, self.target, self.upload], every, **quiet)
        self.save.click(self.write, self.choice, [self.message, self.file], **quiet).success(
            None, None, None, js="() => document.querySelector('#file').click()"
        )

    def start(self) -> list[Any]:
        """The first set that can be read, and its first image."""
        message = 'This config has no data sets: drop an image.'
        for name in self.explorer.shelf.names:
            try:
                shown = self.explorer.pick(name, SHOWN)
                choice = self.explorer.default_choice(shown[0])
                return [name, 0, shown, self._thumbnails(shown), *self._results(choice), *self._values(choice)]
            except UserError as error:
                message = f'{error_message(error)}. Drop an image, or choose another data set.'
        empty = [None, message_html(message), '', '']
        return [None, 0, [], [], *empty, *(gr.skip() for _ in self.controls)]

    def change(self, choice: Choice | None, *values: Any) -> list[Any]:
        """The results of other values of the controls."""
        return self._results(choice and self._read(choice, values))

    def change_kind(self, choice: Choice | None, *values: Any) -> list[Any]:
        """The same with the value that is usual for another mask or fill, or another way to mask."""
        if choice is None:
            return [*self._results(None), gr.skip()]
        choice = self._read(choice, values)
        choice = self.explorer.with_usual_value(choice, share=choice.value is None)
        return [*self._results(choice), self._value(choice)]

    def draw_again(self, choice: Choice | None) -> list[Any]:
        """The results with other random numbers, and another donor."""
        return self._results(choice and self.explorer.drawn_again(choice))

    def show_set(self, name: str | None, number: int = -1) -> list[Any]:
        """Other images of a set; of another set, the first ones."""
        try:
            if name is None:
                raise ConfigError('choose a data set')
            shown = self.explorer.pick(name, SHOWN, number + 1)
            return [message_html(''), number + 1, shown, self._thumbnails(shown)]
        except UserError as error:
            return [message_html(error_message(error)), 0, [], []]

    def pick(self, choice: Choice | None, target: str, shown: list[Source], event: gr.SelectData) -> list[Any]:
        """Choose an image of the data set."""
        return self._choose(choice, target, shown[event.index])

    def open_file(self, choice: Choice | None, target: str, path: str) -> list[Any]:
        """Choose a file."""
        return self._choose(choice, target, Source(path))

    def write(self, choice: Choice | None) -> list[Any]:
        """Write the picture to a file."""
        try:
            if choice is None:
                raise ConfigError('choose an image')
            words = choice.image.words.replace(' ', '_').replace('/', '_')
            path = Path(self.folder.name) / f'{Path(words).stem}_{choice.mask}_{choice.fill}.png'
            save_figure(draw_look(self.explorer.look(choice), self.explorer.classes), path)
            return [message_html(''), str(path)]
        except UserError as error:
            raise gr.Error(error_message(error)) from None

    # Helpers

    def _choose(self, choice: Choice | None, target: str, source: Source) -> list[Any]:
        explorer = self.explorer
        try:
            if target == 'Donor' and choice is not None:
                explorer.inputs(source)  # an error, if it cannot be read
                choice = replace(choice, donor=source)
            else:
                choice = explorer.with_image(choice, source)
        except UserError as error:
            kept = [choice, message_html(error_message(error)), gr.skip(), gr.skip()]
            return [*kept, *(gr.skip() for _ in self.controls)]
        return [*self._results(choice), *self._values(choice)]

    def _results(self, choice: Choice | None) -> list[Any]:
        """The choice, a message, and what there is to see."""
        if choice is None:
            return [None, message_html('Choose an image.'), '', '']
        try:
            look = self.explorer.look(choice)
        except UserError as error:
            return [choice, message_html(error_message(error)), gr.skip(), gr.skip()]
        return [choice, message_html(''), stages_html(look), answers_html(look, self.explorer.classes)]

    def _read(self, choice: Choice, values: tuple[Any, ...]) -> Choice:
        """A choice with the values of the controls."""
        label, mask, fill, by, value, changes, kind, tower, alpha = values
        alpha = choice.alpha if alpha is None else alpha  # the field is empty
        value = (choice.mask_share if by == SHARE else choice.value) if value is None else value
        amount = dict(value=None, mask_share=value) if by == SHARE else dict(value=value, mask_share=None)
        return replace(
            choice, label=label, mask=mask, fill=fill, **amount, changes=changes, map=kind, tower=tower, alpha=alpha
        )

    def _values(self, choice: Choice) -> list[Any]:
        """The values of the controls for a choice."""
        by = THRESHOLD if choice.mask_share is None else SHARE
        maps = gr.update(choices=self.explorer.maps(choice.image), value=choice.map)
        return [
            choice.label, choice.mask, choice.fill, by, self._value(choice), choice.changes, maps, choice.tower,
            choice.alpha,
        ]  # fmt: skip

    def _value(self, choice: Choice) -> Any:
        """The slider of the threshold, probability or share."""
        if choice.mask_share is not None:
            return gr.update(value=choice.mask_share, label=SHARE)
        return gr.update(value=choice.value, label=PROBABILITY if choice.mask == 'random' else THRESHOLD)

    def _thumbnails(self, sources: list[Source]) -> list[tuple[Any, str]]:
        return [self.explorer.thumbnail(source) for source in sources]
