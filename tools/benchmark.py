#!/usr/bin/env python3
"""Time the training step against the published step, plain fine-tuning, and a bound from its arithmetic.

    python tools/benchmark.py                                                 # ViT-B/16, noise images, this machine
    python tools/benchmark.py --model ViT-B-32-quickgelu --batch 16 --amp     # bfloat16
    python tools/benchmark.py --config configs/cfmask_vitl14.py --loader      # any config, with its own images
    python tools/benchmark.py --cfg-options "model.backbone.lora=dict(rank=8)"      # beside the same step with LoRA
    python tools/benchmark.py --evaluation                                    # tools/test.py against the tower alone
    python tools/benchmark.py --count --card H100 --amp --batch 128           # work and traffic on a GPU, counted

The candidates run in turns within one process (A B C A B C …), so a busy machine slows all of them down alike:

- counterfactual: the training step of the config, from a batch of uint8 images to updated weights;
- fine-tuning: the same step without teacher and counterfactual images, in the same precision;
- naive: the step written plainly after the publication, in float32, with separate forward passes for the loss and the
  relevance map, autograd through every attention matrix, and the full L x L relevance recursion;
- adapters and adapter fine-tuning: the first two with adapters, for a config with model.backbone.lora or r_adapter;
- arithmetic: 8 F divided by the rate of this machine's matrix products in the same precision. F is one forward pass of
  the image tower: clean forward 1, relevance 1, teacher 1, masked forward 1, two backward passes 4.

``--evaluation`` times the loop of tools/test.py on the in-distribution set (forward pass, predictions, metrics) against
the forward pass of the tower alone. With ``--loader`` it also times the reading of images alone, and compares with the
sum of both: without a GPU they share the cores.

``--count`` runs one step on tensors without values, as on a GPU, and adds up floating-point operations, bytes read and
written, and kernels, by phase. The estimated time of a card is, summed over kernels, the longer of their arithmetic and
their traffic. A config with adapters is counted with them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmcfmask_cli import add_cfg_options, count, file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Time the training step', epilog='A step is one batch and one update of the weights.'
    )
    parser.add_argument(
        '--config',
        default=str(Path(__file__).parents[1] / 'configs' / 'cfmask_vitb16.py'),
        help='config of the step (default: configs/cfmask_vitb16.py)',
    )
    parser.add_argument('--model', help="open_clip name of the tower, instead of the config's")
    parser.add_argument('--loader', action='store_true', help="read the config's images instead of noise")
    parser.add_argument('--evaluation', action='store_true', help='time the test loop instead of the training step')
    parser.add_argument('--count', action='store_true', help='count work and traffic of one step, without a GPU')
    parser.add_argument(
        '--card',
        choices=['A100', 'H100', 'H200'],
        default='H100',
        help='GPU whose time --count estimates (default: H100)',
    )
    parser.add_argument('--batch', type=count, help="images per step, instead of the config's")
    parser.add_argument(
        '--steps', type=count, default=5, help='timed steps of each candidate, or rounds of --evaluation (default: 5)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: the GPU if there is one)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast (the naive step stays in float32)')
    parser.add_argument('--compile', action='store_true', help='torch.compile the blocks of the towers')
    parser.add_argument('--threads', type=count, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        '--skip',
        nargs='*',
        default=[],
        choices=['naive', 'fine-tuning', 'adapter fine-tuning', 'memory'],
        help='leave these out',
    )
    parser.add_argument('--out', type=file_name, help='write all measurements to this JSON file')
    add_cfg_options(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmcfmask.benchmarks import counting, evaluation, steps, training
    from mmcfmask.engine.checks.outputs import check_out
    from mmcfmask.engine.devices import find_device
    from mmcfmask.files import write_json

    if args.out:
        check_out(args.out)
    console, device = Console(), find_device(args.device)
    if args.evaluation:
        result = evaluation.benchmark_evaluation(
            args.config,
            args.cfg_options,
            args.model,
            device,
            args.steps,
            args.batch,
            args.amp,
            args.loader,
            args.threads,
        )
        evaluation.show_evaluation(result, console)
    else:
        cfg = steps.read_config(args.config, args.cfg_options, args.model, args.batch, args.amp, args.compile)
        if args.count:
            result = counting.count_training_step(cfg, args.card)
            counting.show_count(result, console)
        else:
            result = training.benchmark_training(cfg, device, args.steps, args.loader, args.threads, args.skip)
            training.show_training(result, console)
    if args.out:
        write_json(args.out, result)


if __name__ == '__main__':
    run(main, parse_args())
