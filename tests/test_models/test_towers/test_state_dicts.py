"""Checkpoints of other programs: brought to open_clip's names, or recognised."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mmcfmask.models.towers.loading import check_pretrained, load_image_tower, load_text_model, resolve_pretrained
from mmcfmask.models.towers.state_dicts import to_open_clip


@pytest.fixture
def whole(tiny_pretrained):
    return torch.load(tiny_pretrained, weights_only=True)


def visual_weights(state):
    return {key: value for key, value in state.items() if key.startswith('visual.')}


@pytest.mark.parametrize(
    'prefix, beside',
    [
        ('', 'head.fc.weight'),
        ('module.', 'module.logit_scale'),
        ('model.', 'classifier.weight'),
        ('backbone.', 'head.fc.weight'),  # of this package
        ('module.backbone.', 'module.head.fc.weight'),
        ('image_encoder.model.', 'classification_head.weight'),  # of WiSE-FT and FLYP
        ('_orig_mod.', '_orig_mod.logit_scale'),
    ],
)
def test_image_towers_below_a_prefix(prefix, beside, whole, tmp_path):
    visual = visual_weights(whole)
    torch.save(
        {beside: torch.ones(()), **{prefix + key: value for key, value in visual.items()}}, tmp_path / 'tower.pt'
    )
    loaded = load_image_tower('tiny-vit', str(tmp_path / 'tower.pt')).visual.state_dict()
    assert loaded.keys() == {key[len('visual.') :] for key in visual}
    assert all(torch.equal(value, visual[f'visual.{key}']) for key, value in loaded.items())


@pytest.mark.parametrize('nested', ['state_dict', 'model', 'model_state_dict'])
def test_a_bare_tower_under_a_key(nested, whole, tmp_path):
    bare = {key[len('visual.') :]: value for key, value in visual_weights(whole).items()}
    torch.save({nested: bare, 'epoch': 3}, tmp_path / 'tower.pt')
    loaded = load_image_tower('tiny-vit', str(tmp_path / 'tower.pt')).visual.state_dict()
    assert all(torch.equal(value, bare[key]) for key, value in loaded.items())


def test_a_text_tower_keeps_its_place_below_the_prefix(whole, tmp_path):
    torch.save({f'image_encoder.model.{key}': value for key, value in whole.items()}, tmp_path / 'whole.pt')
    model, _ = load_text_model('tiny-vit', str(tmp_path / 'whole.pt'))
    assert all(torch.equal(value, whole[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', ['RN50', 'convnext_base', 'ViT-B-16-SigLIP'])
def test_bare_towers_of_other_kinds(name, monkeypatch):
    visual = load_image_tower(name).visual.state_dict()
    assert to_open_clip(visual).keys() == {f'visual.{key}' for key in visual}


@pytest.mark.parametrize('key', ['attn.out_proj.lora_A.default.weight', 'attn.adapter_B'])
def test_adapters_are_refused(whole, tmp_path, key):
    key = f'visual.transformer.resblocks.0.{key}'
    torch.save(
        {f'base_model.model.{name}': value for name, value in {**whole, key: torch.ones(1)}.items()},
        tmp_path / 'lora.pt',
    )
    with pytest.raises(ValueError, match='lora.pt: it holds adapters.*merge_and_unload'):
        load_image_tower('tiny-vit', str(tmp_path / 'lora.pt'))


def test_two_towers_are_refused(whole, tmp_path):
    torch.save(
        {f'{who}.{key}': value for who in ('teacher', 'student') for key, value in whole.items()}, tmp_path / 'two.pt'
    )
    with pytest.raises(ValueError, match=r'two.pt: it holds several image towers \(student.visual, teacher.visual\)'):
        load_image_tower('tiny-vit', str(tmp_path / 'two.pt'))


@pytest.mark.parametrize(
    'key, what',
    [
        ('backbone.layers.0.attn.qkv.weight', 'mmpretrain backbone: .*init_cfg'),
        ('backbone.layer1.0.conv1.weight', 'mmpretrain backbone'),
        ('embeddings.patch_embeddings.projection.weight', 'a ViT or DINOv2 of transformers'),
        ('vit.embeddings.patch_embeddings.projection.weight', 'a ViT or DINOv2 of transformers'),
        ('text_model.encoder.layers.0.mlp.fc1.weight', 'another model of transformers than CLIP or SigLIP'),
        ('blocks.0.attn.qkv.weight', 'an image model of timm, DINO or MAE'),
        ('module.blocks.0.attn.qkv.weight', 'an image model of timm, DINO or MAE'),
        ('stages.0.blocks.0.mlp.fc1.weight', 'an image model of timm'),
        ('layer1.0.conv1.weight', 'a ResNet of torchvision or timm'),
        ('Transformer/encoderblock_0/LayerNorm_0/scale', 'a JAX program'),
        ('layer.weight', 'it holds layer.weight: use'),
    ],
)
def test_other_formats_are_named(key, what, tmp_path):
    torch.save({key: torch.zeros(3)}, tmp_path / 'other.pt')
    with pytest.raises(ValueError, match=f'other.pt holds no image tower of a CLIP: .*{what}'):
        load_image_tower('tiny-vit', str(tmp_path / 'other.pt'))


@pytest.mark.parametrize(
    'weights, what',
    [
        ({'vision_model.embeddings.class_embedding': (2,)}, 'another model of transformers'),
        ({'vision_model.embeddings.patch_embedding.weight': (2, 12)}, 'of flexible resolution'),
        ({'vision_model.embeddings.patch_embedding.weight': (2, 3, 2, 2)}, 'without its projection'),
        ({'embeddings.patch_embedding.weight': (2, 3, 2, 2)}, 'without its projection'),
        (
            {
                'vision_model.embeddings.patch_embedding.weight': (2, 3, 2, 2),
                'visual_projection.weight': (2, 2),
                'vision_model.encoder.layers.0.self_attn.q_proj.weight': (2, 2),
            },
            'vision_model.encoder.layers.0.self_attn.k_proj.weight is missing',
        ),
        (
            {
                'vision_model.embeddings.patch_embedding.weight': (2, 3, 2, 2),
                'visual_projection.weight': (2, 2),
                'qformer.weight': (2,),
            },
            "which lack 'qformer.weight'",
        ),
    ],
)
def test_models_of_transformers_without_a_counterpart(weights, what, tmp_path):
    torch.save({key: torch.zeros(shape) for key, shape in weights.items()}, tmp_path / 'pytorch_model.bin')
    for load in load_image_tower, load_text_model:
        with pytest.raises(ValueError, match=f'pytorch_model.bin: .*{what}'):
            load('tiny-vit', str(tmp_path / 'pytorch_model.bin'))


@pytest.mark.parametrize('name', ['model.onnx', 'flax_model.msgpack', 'model.safetensors.index.json', 'model.gguf'])
def test_files_of_other_programs(name, tmp_path):
    (tmp_path / name).write_bytes(b'x')
    with pytest.raises(ValueError, match=f'{name} is .*, not a checkpoint of torch: '):
        load_image_tower('tiny-vit', str(tmp_path / name))


@pytest.mark.parametrize('stored', ['open_clip_model.safetensors', 'model.safetensors', 'pytorch_model.bin'])
def test_a_repository_of_the_hub(stored, whole, tmp_path, monkeypatch):
    """The weights for open_clip, or else those for transformers."""
    asked = []

    def download(repo_id, filename, **kwargs):
        asked.append(filename)
        if filename != stored:
            raise OSError('404')
        return str(tmp_path / stored)

    if stored.endswith('.bin'):
        torch.save(whole, tmp_path / stored)
    else:
        save_file(whole, tmp_path / stored)
    monkeypatch.setattr(open_clip.pretrained, 'hf_hub_download', download)
    check_pretrained('tiny-vit', 'hf-hub:org/repo')
    assert not asked
    loaded = load_image_tower('tiny-vit', 'hf-hub:org/repo').visual.state_dict()
    assert torch.equal(loaded['proj'], whole['visual.proj'])


def test_a_repository_that_is_none(monkeypatch):
    with pytest.raises(ValueError, match="'hf-hub:org' names no repository"):
        check_pretrained('tiny-vit', 'hf-hub:org')
    monkeypatch.setattr(open_clip.pretrained, 'hf_hub_download', lambda **kwargs: json.loads(''))
    with pytest.raises(FileNotFoundError, match="'hf-hub:org/repo' of 'tiny-vit' .*`hf download org/repo` does it"):
        resolve_pretrained('tiny-vit', 'hf-hub:org/repo')
