#!/usr/bin/env python3
"""Convert the image tower of an open_clip ViT for mmpretrain's ``VisionTransformer`` with a ``CLIPProjection`` neck.

    python tools/convert_open_clip.py ViT-B-16-quickgelu openai clip_vitb16.pth

PRETRAINED is a tag of open_clip or the path of a checkpoint. Writes the weights (``backbone.*``, ``neck.*``; load them
with ``init_cfg=dict(type='Pretrained', checkpoint=...)`` or ``load_from``) and prints the matching ``backbone`` and
``neck`` config. ``tools/export.py --to mmpretrain`` does this for a fine-tuned model.
"""

from __future__ import annotations

import argparse

from mmcfmask_cli import file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model_name', metavar='MODEL_NAME')
    parser.add_argument('pretrained', metavar='PRETRAINED')
    parser.add_argument('out', type=file_name, metavar='OUT.pth')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import json

    from mmcfmask.files import write_tensors
    from mmcfmask.models import OpenCLIPBackbone
    from mmcfmask.models.towers.conversion import mmpretrain_config, mmpretrain_model

    mmpretrain_config(args.model_name, args.pretrained)  # refuses other towers before anything is loaded
    config, state_dict = mmpretrain_model(OpenCLIPBackbone(args.model_name, args.pretrained))
    write_tensors(args.out, dict(state_dict=state_dict))
    print(f'{args.out}: {len(state_dict)} tensors. The model:')
    print(json.dumps(config, indent=4))


if __name__ == '__main__':
    run(main, parse_args())
