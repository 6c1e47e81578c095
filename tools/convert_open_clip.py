#!/usr/bin/env python3
"""Convert the image tower of an open_clip ViT for mmpretrain's ``VisionTransformer`` with a ``CLIPProjection`` neck.

    python tools/convert_open_clip.py ViT-B-16-quickgelu openai clip_vitb16.pth

PRETRAINED is a tag of open_clip or the path of a checkpoint. Writes the weights (``backbone.*``, ``neck.*``; load them
with ``init_cfg=dict(type='Pretrained', checkpoint=...)`` or ``load_from``) and prints the matching ``backbone`` and
``neck`` config.
"""

import argparse
import json
from pathlib import Path

from mmcfmask.files import write_tensors
from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain
from mmcfmask.models.towers.loading import load_image_tower
from mmcfmask.output import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model_name', metavar='MODEL_NAME')
    parser.add_argument('pretrained', metavar='PRETRAINED')
    parser.add_argument('out', metavar='OUT.pth', type=Path)
    args = parser.parse_args()
    config = mmpretrain_config(args.model_name, args.pretrained)  # refuses other towers before anything is loaded
    state_dict = open_clip_to_mmpretrain(load_image_tower(args.model_name, args.pretrained).visual.state_dict())
    write_tensors(args.out, dict(state_dict=state_dict))
    print(f'{args.out}: {len(state_dict)} tensors. The model:')
    print(json.dumps(config, indent=4))


if __name__ == '__main__':
    run_tool(main)
