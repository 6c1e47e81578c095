import json
import math
from pathlib import Path

import open_clip
import open_clip.pretrained
import pytest
import torch
from safetensors.torch import save_file

from mmcfmask.errors import MissingPackageError
from mmcfmask.models.towers import loading, weight_files
from mmcfmask.models.towers.loading import (
    load_image_tower,
    load_text_model,
    resolve_pretrained,
    weights_normalisation,
)
from mmcfmask.models.towers.weight_files import read_state_dict


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def reference(tiny_pretrained):
    """open_clip's own model with the weights of the checkpoint."""
    return open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval()


def features(path, images, name='tiny-vit'):
    tower = load_image_tower(name, str(path))
    with torch.no_grad():
        return tower.visual.eval()(images)


def test_random_weights():
    tower = load_image_tower('tiny-vit')
    assert (tower.embed_dim, tower.image_size, tower.patch_size) == (16, (32, 32), (8, 8))
    assert tower.logit_scale == pytest.approx(1 / 0.07)  # what open_clip starts training with
    assert tower.mean is None and tower.std is None


def test_every_form_of_checkpoint(tmp_path, tiny_pretrained, reference, images):
    state = reference.state_dict()
    visual = {key: value for key, value in state.items() if key.startswith('visual.')}
    torch.save(
        {'epoch': 3, 'state_dict': {f'module.{key}': value for key, value in state.items()}}, tmp_path / 'nested.pth'
    )
    torch.save(visual, tmp_path / 'visual.pt')
    save_file(visual, tmp_path / 'visual.safetensors')
    save_file({key: value.half() for key, value in visual.items()}, tmp_path / 'half.safetensors')
    torch.save(state, tmp_path / 'whole.bin')
    with torch.no_grad():
        expected = reference.encode_image(images)
    for name in ('nested.pth', 'visual.pt', 'visual.safetensors', 'whole.bin'):
        torch.testing.assert_close(features(tmp_path / name, images), expected, rtol=0, atol=0)
    half = features(tmp_path / 'half.safetensors', images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(half, expected)


@pytest.mark.filterwarnings('ignore')
def test_torchscript_archive(tmp_path, images, monkeypatch):
    """OpenAI's releases: a TorchScript model with three buffers that are no weights."""
    model = open_clip.create_model('tiny-vit').eval()

    class Release(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, child)
            self.logit_scale, self.positional_embedding = model.logit_scale, model.positional_embedding
            self.text_projection = model.text_projection
            for name in ('input_resolution', 'context_length', 'vocab_size'):
                self.register_buffer(name, torch.tensor(8))

        def forward(self, x):
            return self.visual(x)

    torch.jit.trace(Release().eval(), images, check_trace=False).save(str(tmp_path / 'release.pt'))
    with torch.no_grad():
        torch.testing.assert_close(
            features(tmp_path / 'release.pt', images), model.encode_image(images), rtol=0, atol=0
        )
    text_model, tokenizer = load_text_model('tiny-vit', str(tmp_path / 'release.pt'))
    tokens = tokenizer(['a star'])
    with torch.no_grad():
        torch.testing.assert_close(text_model.encode_text(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5)

    said = []
    monkeypatch.setattr(weight_files, 'print_log', lambda text, *args, **kwargs: said.append(text))
    load_image_tower('tiny-vit-quickgelu', str(tmp_path / 'release.pt'))
    assert not said
    load_image_tower('tiny-vit', str(tmp_path / 'release.pt'))
    assert len(said) == 1 and "use model_name='tiny-vit-quickgelu'" in said[0]


def test_only_tensors_are_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ('executed',)

    torch.save({'visual.proj': Evil()}, tmp_path / 'evil.pt')
    with pytest.raises(
        ValueError,
        match=r'evil.pt cannot be read as a checkpoint: it holds more .* could run code: save the state_dict\(\)',
    ) as error:
        load_image_tower('tiny-vit', str(tmp_path / 'evil.pt'))
    assert '\n' not in str(error.value) and 'weights_only' not in str(error.value)


def test_logit_scale(tmp_path, reference):
    state = reference.state_dict()
    state['logit_scale'] = torch.tensor(math.log(42.0))
    torch.save(state, tmp_path / 'whole.pt')
    assert load_image_tower('tiny-vit', str(tmp_path / 'whole.pt')).logit_scale == pytest.approx(42)
    torch.save({key: value for key, value in state.items() if key.startswith('visual.')}, tmp_path / 'visual.pt')
    assert load_image_tower('tiny-vit', str(tmp_path / 'visual.pt')).logit_scale == 100


@pytest.mark.parametrize('name', ['RN50', 'convnext_base', 'ViT-B-16-SigLIP'])
def test_other_kinds_of_towers(name):
    """Convolutional towers and timm's; open_clip's whole model would need hub files for some of the text towers."""
    tower = load_image_tower(name)
    assert tower.embed_dim == open_clip.get_model_config(name)['embed_dim']
    assert tower.image_size == (224, 224)
    assert tower.patch_size == ((16, 16) if name.startswith('ViT') else None)


def test_tag_decides_activation_and_normalisation(tmp_path, monkeypatch, tiny_pretrained, images):
    tags = dict(quick=dict(hf_hub='org/repo/', quick_gelu=True, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-vit', tags)
    monkeypatch.setattr(open_clip, 'download_pretrained', lambda cfg: tiny_pretrained)
    tower = load_image_tower('tiny-vit', 'quick')
    assert tower.mean == (0.5, 0.5, 0.5) and tower.std == (0.25, 0.25, 0.25)
    quick = open_clip.create_model('tiny-vit-quickgelu', pretrained=tiny_pretrained)
    with torch.no_grad():
        torch.testing.assert_close(tower.visual.eval()(images), quick.eval().encode_image(images), rtol=0, atol=0)

    # Also where a checkpoint brings the weights, and nothing is read.
    monkeypatch.setattr(open_clip, 'download_pretrained', lambda cfg: pytest.fail('downloads'))
    unloaded = load_image_tower('tiny-vit', 'quick', load=False)
    unloaded.visual.load_state_dict(tower.visual.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(unloaded.visual.eval()(images), quick.encode_image(images), rtol=0, atol=0)


def test_normalisation_that_weights_were_trained_with():
    clip = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
    half, pixels = dict(mean=(0.5,) * 3, std=(0.5,) * 3), dict(mean=(0.0,) * 3, std=(1.0,) * 3)
    for name, pretrained, expected in (
        ('ViT-B-16-SigLIP2', 'webli', half),
        ('ViT-B-16-SigLIP2', 'a/file.safetensors', half),  # all tags agree
        ('MobileCLIP2-S0', None, pixels),
        ('ViT-L-14', 'openai', clip),
        ('ViT-L-14', 'laion2b_s32b_b82k', half),
        ('ViT-L-14', 'a/file.pt', clip),  # tags differ
        ('ViT-S-16', 'a/file.pt', clip),  # there are none
    ):
        assert weights_normalisation(name, pretrained) == expected, (name, pretrained)


def test_position_embedding_is_resized_as_open_clip_does(tmp_path, reference, images):
    state = reference.state_dict()
    state['visual.positional_embedding'] = torch.randn(5, 32)  # class token and 2x2 patches
    torch.save(state, tmp_path / 'small.pt')
    expected = open_clip.create_model('tiny-vit', pretrained=str(tmp_path / 'small.pt')).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            features(tmp_path / 'small.pt', images), expected.encode_image(images), rtol=0, atol=0
        )


def test_unknown_names():
    with pytest.raises(ValueError, match="Unknown open_clip model 'ViT-B-17'.*'ViT-B-16'"):
        load_image_tower('ViT-B-17')
    with pytest.raises(
        ValueError, match="Unknown pretrained tag 'opnai' for 'ViT-B-16'.*'openai'.*'laion2b_s34b_b88k'"
    ):
        load_image_tower('ViT-B-16', 'opnai')
    with pytest.raises(ValueError, match='Tags of this model: none'):
        load_image_tower('tiny-vit', 'openai')


def test_paths_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist.*missing.pt'):
        load_image_tower('tiny-vit', str(tmp_path / 'missing.pt'))
    with pytest.raises(FileNotFoundError, match='is a folder'):
        load_image_tower('tiny-vit', str(tmp_path))


def test_no_checkpoint(tmp_path):
    (tmp_path / 'notes.pt').write_text('hello')
    with pytest.raises(ValueError, match='notes.pt cannot be read as a checkpoint'):
        load_image_tower('tiny-vit', str(tmp_path / 'notes.pt'))
    torch.save({'optimizer': {'lr': 1}}, tmp_path / 'optimizer.pt')
    with pytest.raises(ValueError, match='not a state dict: it holds the keys optimizer'):
        load_image_tower('tiny-vit', str(tmp_path / 'optimizer.pt'))
    torch.save({'layer.weight': torch.zeros(3)}, tmp_path / 'other.pt')
    with pytest.raises(ValueError, match='holds no image tower'):
        load_image_tower('tiny-vit', str(tmp_path / 'other.pt'))


def test_keys_that_do_not_fit_are_named(tmp_path, reference):
    visual = {key: value for key, value in reference.state_dict().items() if key.startswith('visual.')}
    del visual['visual.ln_post.bias']
    visual['visual.extra'] = torch.zeros(1)
    visual['visual.proj'] = torch.zeros(32, 8)
    torch.save(visual, tmp_path / 'broken.pt')
    with pytest.raises(ValueError) as error:
        load_image_tower('tiny-vit', str(tmp_path / 'broken.pt'))
    message = str(error.value)
    assert '1 missing: ln_post.bias' in message
    assert '1 unexpected: extra' in message
    assert '1 of another shape: proj (32, 8) instead of (32, 16)' in message


def test_offline(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(open_clip.pretrained, 'hf_hub_download', unreachable)
    monkeypatch.setattr(open_clip.pretrained, 'download_pretrained_from_url', unreachable)
    with pytest.raises(FileNotFoundError) as error:
        load_image_tower('ViT-B-32', 'laion2b_s34b_b79k')
    for part in (
        "'laion2b_s34b_b79k' of 'ViT-B-32'",
        "'laion/CLIP-ViT-B-32-laion2B-s34B-b79K'",
        'hub cache',
        'pretrained=',
    ):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match=r'yfcc15m.*RN50-quickgelu|RN50-quickgelu.*yfcc15m'):
        load_image_tower('RN50-quickgelu', 'yfcc15m')


def test_offline_repository(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(open_clip.pretrained, 'hf_hub_download', unreachable)
    with pytest.raises(
        FileNotFoundError, match="'hf-hub:org/model' are not on this machine.*no route to host.*hub cache"
    ):
        load_image_tower('hf-hub:org/model')


def test_shapes_weights_belong_to_their_model(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='ShapesCLIP-ViT-8-64'):
        resolve_pretrained('tiny-vit', 'shapes')
    monkeypatch.setattr(loading, 'ASSETS', tmp_path)
    with pytest.raises(FileNotFoundError, match='pretrain_shapes_clip'):
        resolve_pretrained('ShapesCLIP-ViT-8-64', 'shapes')
    (tmp_path / 'ShapesCLIP-ViT-8-64.safetensors').touch()
    assert resolve_pretrained('ShapesCLIP-ViT-8-64', 'shapes').parent == tmp_path


def test_shapes_model_is_registered():
    assert load_image_tower('ShapesCLIP-ViT-8-64').image_size == (64, 64)


def test_text_model(tiny_pretrained, reference):
    model, tokenizer = load_text_model('tiny-vit', tiny_pretrained)
    tokens = tokenizer(['a photo of a star.', 'a sketch'])
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), reference.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_text_model_of_a_textless_file(tmp_path, reference):
    visual = {
        key: value for key, value in reference.state_dict().items() if key.startswith('visual.') or key == 'logit_scale'
    }
    torch.save(visual, tmp_path / 'visual.pt')
    with pytest.raises(ValueError, match='visual.pt has no text tower'):
        load_text_model('tiny-vit', str(tmp_path / 'visual.pt'))


def test_local_dir(tmp_path, tiny_pretrained, images, reference):

    cfg = dict(
        model_cfg=open_clip.get_model_config('tiny-vit'), preprocess_cfg=dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    )
    (tmp_path / 'open_clip_config.json').write_text(json.dumps(cfg))
    torch.save(read_state_dict(tiny_pretrained, 'tiny-vit'), tmp_path / 'open_clip_pytorch_model.bin')
    tower = load_image_tower(f'local-dir:{tmp_path}')
    assert tower.mean == (0.1, 0.2, 0.3)
    with torch.no_grad():
        torch.testing.assert_close(tower.visual.eval()(images), reference.encode_image(images), rtol=0, atol=0)
    with pytest.raises(ValueError, match='includes its weights'):
        load_image_tower(f'local-dir:{tmp_path}', 'openai')


@pytest.mark.parametrize(
    'keys, half, warned', [('visual.', False, True), ('visual.', True, True), ('', True, True), ('', False, False)]
)
def test_state_dict_that_may_be_openai_s(tmp_path, tiny_pretrained, monkeypatch, keys, half, warned):
    """Their weights fit in float16 in whatever precision they are kept; of an image tower alone nothing is known."""
    said = []
    monkeypatch.setattr(weight_files, 'print_log', lambda text, *args, **kwargs: said.append(text))
    state = {
        name: value.half().float() if half else value
        for name, value in torch.load(tiny_pretrained, weights_only=True).items()
        if name.startswith(keys)
    }
    torch.save(state, tmp_path / 'clip.pt')
    load_image_tower('tiny-vit-quickgelu', str(tmp_path / 'clip.pt'))
    assert not said
    load_image_tower('tiny-vit', str(tmp_path / 'clip.pt'))
    assert len(said) == warned and all("use model_name='tiny-vit-quickgelu'" in text for text in said)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda value: value * float('nan'), 'holds numbers that are not finite'),
        (lambda value: value.int(), 'of another kind: proj int32'),
        (lambda value: value.to(torch.complex64), 'of another kind: proj complex64'),
        (lambda value: value.to_sparse(), 'proj is a sparse tensor'),
    ],
)
def test_weights_that_cannot_be(tmp_path, tiny_pretrained, change, message):
    state = torch.load(tiny_pretrained, weights_only=True)
    state['visual.proj'] = change(state['visual.proj'])
    torch.save(state, tmp_path / 'clip.pt')
    with pytest.raises(ValueError, match=f'clip.pt.*{message}'):
        load_image_tower('tiny-vit', str(tmp_path / 'clip.pt'))


def test_flipped_byte(tmp_path, tiny_pretrained):
    data = bytearray(Path(tiny_pretrained).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / 'flipped.pt').write_bytes(data)
    with pytest.raises(OSError, match='flipped.pt.* is damaged: the checksum'):
        load_image_tower('tiny-vit', str(tmp_path / 'flipped.pt'))


@pytest.mark.parametrize(
    'error',
    [
        ModuleNotFoundError("No module named 'transformers'"),
        RuntimeError('Please `pip install transformers` to use pre-trained HuggingFace models'),
    ],
)
def test_texts_that_need_transformers(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(open_clip, 'get_tokenizer', fail)
    with pytest.raises(MissingPackageError, match="text tower of 'tiny-vit' needs transformers: pip install"):
        load_text_model('tiny-vit')


def test_other_failed_imports_are_shown(monkeypatch):
    monkeypatch.setattr(open_clip, 'get_tokenizer', lambda name: __import__('mmcfmask.nothing'))
    with pytest.raises(ModuleNotFoundError, match='mmcfmask.nothing'):
        load_text_model('tiny-vit')
