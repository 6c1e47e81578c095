#!/usr/bin/env python3
"""Explore counterfactual images, and what models say to them, on a local page in the browser.

    python tools/explore.py configs/shapes/cfmask.py                  # zero-shot, on the built-in benchmark
    python tools/explore.py CONFIG work_dirs/RUN/best.pth             # and a fine-tuned model beside it

One picks an image of the config's data sets or drops a file, and chooses class, mask, fill, threshold, donor, relevance
map and WiSE-FT's α. It needs gradio: pip install 'mmcfmask[explore]'.
"""

import argparse

from mmcfmask_cli import add_cfg_options, count, file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Explore counterfactual images and predictions on a local page')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoints', nargs='*', type=file_name, metavar='CHECKPOINT', help='fine-tuned weights')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on; 0.0.0.0 lets other machines in (default: %(default)s)',
    )
    parser.add_argument('--port', type=count, help='port to listen on (default: the first free one from 7860)')
    parser.add_argument('--open', action='store_true', help='open the page in a browser')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: the GPU if there is one)')
    add_cfg_options(parser)
    return parser.parse_intermixed_args()


def main(args: argparse.Namespace) -> None:
    from mmcfmask.explorer.page import launch  # first: without gradio, this ends here

    # isort: split
    from mmcfmask.engine.config import load_config
    from mmcfmask.engine.devices import find_device
    from mmcfmask.explorer.session import Explorer

    explorer = Explorer(load_config(args.config, args.cfg_options), args.checkpoints, find_device(args.device))
    page, url = launch(explorer, args.host, args.port, args.open)
    print(f'The explorer is at {url} (Ctrl-C ends it)', flush=True)
    if args.host not in ('127.0.0.1', 'localhost'):
        print(f'Whoever reaches this machine by --host {args.host} can use it: there is no password', flush=True)
    page.block_thread()


if __name__ == '__main__':
    run(main, parse_args())
