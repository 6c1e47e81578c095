"""CLIP and SigLIP of transformers: the library itself is the reference where it is installed."""

import open_clip
import pytest
import tiny_siglip
import torch
from tiny_siglip import shaken

from mmcfmask.models.towers.hugging_face import from_hugging_face, to_hugging_face
from mmcfmask.models.towers.loading import load_image_tower, load_text_model

WIDTHS = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)


@pytest.fixture(scope='module', autouse=True)
def siglip(tmp_path_factory):
    tiny_siglip.register(tmp_path_factory.mktemp('siglip'))


def clip_of_transformers():
    transformers = pytest.importorskip('transformers')
    config = transformers.CLIPConfig(
        vision_config=dict(WIDTHS, image_size=32, patch_size=8, hidden_act='gelu'),
        text_config=dict(
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            hidden_act='gelu',
        ),
        projection_dim=16,
    )
    return shaken(transformers.CLIPModel(config))


def siglip_of_transformers():
    transformers = pytest.importorskip('transformers')
    widths = dict(WIDTHS, intermediate_size=64, num_hidden_layers=2)
    config = transformers.SiglipConfig(
        vision_config=dict(widths, image_size=32, patch_size=8),
        text_config=dict(widths, intermediate_size=128, max_position_embeddings=16, vocab_size=49408),
    )
    return shaken(transformers.SiglipModel(config))


@pytest.mark.parametrize('make, name', [(clip_of_transformers, 'tiny-vit'), (siglip_of_transformers, tiny_siglip.NAME)])
@pytest.mark.parametrize('safe', [True, False])
def test_a_model_of_transformers_is_loaded(make, name, safe, tmp_path):
    theirs = make()
    if safe:
        theirs.save_pretrained(tmp_path)
        path = tmp_path / 'model.safetensors'
    else:
        path = tmp_path / 'pytorch_model.bin'
        torch.save(theirs.state_dict(), path)
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(1, 49000, (2, 16))
    tokens[:, -1] = 49407  # the end of a text
    with torch.no_grad():
        outputs = theirs(input_ids=tokens, pixel_values=images)
        tower = load_image_tower(name, str(path))
        close(tower.visual.eval()(images), outputs.image_embeds)
        text_model, _ = load_text_model(name, str(path))
        close(text_model.encode_text(tokens), outputs.text_embeds)
    assert tower.logit_scale == pytest.approx(theirs.logit_scale.exp().item(), rel=1e-5)


def close(ours, theirs):
    """transformers normalises the embeddings."""
    torch.testing.assert_close(torch.nn.functional.normalize(ours), theirs, rtol=1e-5, atol=1e-5)


def test_image_towers_alone(tmp_path):
    transformers = pytest.importorskip('transformers')
    images = torch.randn(2, 3, 32, 32)
    config = transformers.CLIPVisionConfig(**WIDTHS, image_size=32, patch_size=8, hidden_act='gelu', projection_dim=16)
    clip = shaken(transformers.CLIPVisionModelWithProjection(config))
    config = transformers.SiglipVisionConfig(
        **dict(WIDTHS, intermediate_size=64, num_hidden_layers=2), image_size=32, patch_size=8
    )
    siglip = shaken(transformers.SiglipVisionModel(config))
    for theirs, name, output in ((clip, 'tiny-vit', 'image_embeds'), (siglip, tiny_siglip.NAME, 'pooler_output')):
        theirs.save_pretrained(tmp_path / name)
        tower = load_image_tower(name, str(tmp_path / name / 'model.safetensors'))
        with torch.no_grad():
            torch.testing.assert_close(tower.visual.eval()(images), theirs(images)[output], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['tiny-vit', tiny_siglip.NAME])
def test_there_and_back(name):
    weights = shaken(open_clip.create_model(name)).state_dict()
    renamed, unknown = to_hugging_face(weights, siglip=name == tiny_siglip.NAME)
    assert not unknown and all(value.is_contiguous() for value in renamed.values())
    back = from_hugging_face(renamed)
    assert back.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in back.items())


def test_the_names_of_attention():
    """Written out by hand: queries, keys and values are joined in this order."""
    width = 2
    parts = {part: torch.full((width, width), float(i)) for i, part in enumerate('qkv')}
    block = 'vision_model.encoder.layers.11.self_attn'
    weights = {
        'vision_model.embeddings.patch_embedding.weight': torch.zeros(2, 3, 2, 2),
        'vision_model.embeddings.position_ids': torch.arange(5),
        'visual_projection.weight': torch.tensor([[1.0, 2], [3, 4]]),
        **{f'{block}.{part}_proj.weight': value for part, value in parts.items()},
    }
    renamed = from_hugging_face(weights)
    assert renamed.keys() == {
        'visual.conv1.weight',
        'visual.proj',
        'visual.transformer.resblocks.11.attn.in_proj_weight',
    }
    assert renamed['visual.proj'].tolist() == [[1, 3], [2, 4]]
    assert renamed['visual.transformer.resblocks.11.attn.in_proj_weight'][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_names_of_siglips_pool():
    joined = torch.arange(6.0)[:, None].expand(6, 2)
    weights = {
        'vision_model.embeddings.patch_embedding.weight': torch.zeros(2, 3, 2, 2),
        'vision_model.head.attention.in_proj_weight': joined,
    }
    renamed = from_hugging_face(weights)
    assert renamed['visual.trunk.attn_pool.q.weight'][:, 0].tolist() == [0, 1]
    assert renamed['visual.trunk.attn_pool.kv.weight'][:, 0].tolist() == [2, 3, 4, 5]


def test_what_has_no_name_there():
    _, unknown = to_hugging_face({'visual.attn_pool.query': torch.zeros(1)}, siglip=False)
    assert unknown == ['visual.attn_pool.query']
