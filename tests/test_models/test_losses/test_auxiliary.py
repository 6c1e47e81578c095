"""Each loss against its equation written out slowly, and what a method needs and leaves behind."""

import copy
import math
import re
from pathlib import Path

import open_clip
import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.models.losses.carft import context_divergence
from mmcfmask.models.losses.l2sp import l2_sp
from mmcfmask.models.losses.lipsum import energy_gap, random_tokens

NAMES = ['star', 'blue circle', 'ring']
TEMPLATES = ['a photo of a {}.', 'a sketch of the {}.', '{} in the rain']


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))


def build(pretrained, *auxiliary, teacher=True, **head):
    torch.manual_seed(2)
    head = dict(
        dict(
            type='CLIPDistillHead',
            num_classes=3,
            distill=None,
            class_weights=dict(type='text', classnames=NAMES, templates=TEMPLATES),
        ),
        **head,
    )
    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained),
            head=head,
            teacher=dict(type='OpenCLIPTeacher') if teacher else None,
            auxiliary=list(auxiliary),
        )
    ).train()


def move_away(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std().nan_to_num() * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch():
    torch.manual_seed(3)
    return torch.randn(4, 3, 32, 32), [DataSample().set_gt_label(label) for label in (0, 2, 2, 1)]


@pytest.fixture
def clip(tiny_pretrained):
    """The whole pre-trained model, and its tokenizer."""
    return open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval(), open_clip.get_tokenizer('tiny-vit')


def unit(vector):
    return [x / math.sqrt(sum(y * y for y in vector)) for x in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


# equations
# -----------------------------------------------------------------------------------------------------------------


def test_l2_sp_equals_loop():
    weights, start = ([torch.randn(2, 3), torch.randn(4)] for _ in range(2))
    total = sum(
        (a - b) ** 2 for w, w0 in zip(weights, start) for a, b in zip(w.flatten().tolist(), w0.flatten().tolist())
    )
    assert l2_sp(weights, start).item() == pytest.approx(total / 2, rel=1e-5)


def test_context_divergence_equals_loop():
    student, teacher, contexts = torch.randn(3, 5), torch.randn(3, 5), torch.nn.functional.normalize(torch.randn(4, 5))
    total = 0.0
    for z, z0 in zip(student.tolist(), teacher.tolist()):
        p, p0 = ([math.exp(20 * dot(unit(f), c)) for c in contexts.tolist()] for f in (z, z0))
        p, p0 = [x / sum(p) for x in p], [x / sum(p0) for x in p0]
        total += sum(x0 * math.log(x0 / x) for x0, x in zip(p0, p))  # the expectation is the start's
    assert context_divergence(student, teacher, contexts, 20.0).item() == pytest.approx(total / 3, rel=1e-4)
    assert context_divergence(3 * student, student, contexts, 20.0).item() == pytest.approx(
        0, abs=1e-5
    )  # cosines: no length


def test_energy_gap_equals_loop():
    student, teacher, texts = torch.randn(3, 5), torch.randn(3, 5), torch.nn.functional.normalize(torch.randn(4, 5))
    total = 0.0
    for z, z0 in zip(student.tolist(), teacher.tolist()):
        v, v0 = ([100 * dot(unit(f), t) for t in texts.tolist()] for f in (z, z0))
        total += sum((a - b) ** 2 for a, b in zip(v, v0)) / (2 * 4)
    assert energy_gap(student, teacher, texts, 100.0).item() == pytest.approx(total / 3, rel=1e-4)


def test_similarities_are_float32_under_autocast():
    student, texts = torch.randn(3, 64), torch.nn.functional.normalize(torch.randn(4, 64))
    teacher = student + 1e-3
    expected = energy_gap(student, teacher, texts, 100.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(energy_gap(student, teacher, texts, 100.0), expected)


def test_random_texts_are_what_the_text_tower_expects(clip):
    model, tokenizer = clip
    tokens = random_tokens(200, 8, 16, tokenizer.sot_token_id, tokenizer.eot_token_id)
    assert tokens.shape == tokenizer(['']).shape[:0] + (200, 16)
    example = tokenizer(['a b c d'])[0]
    assert (
        (tokens[:, 0] == example[0]).all()
        and (tokens[:, 9] == tokenizer.eot_token_id).all()
        and (tokens[:, 10:] == 0).all()
    )
    words = tokens[:, 1:9]
    assert words.max() < tokenizer.sot_token_id and words.min() >= 0 and len(words.unique()) > 1400
    assert (tokens.argmax(dim=1) == 9).all()  # where the tower reads the text's embedding


# steps
# ---------------------------------------------------------------------------------------------------------------------


def test_l2sp_step(tiny_pretrained, batch):
    start = build(tiny_pretrained)
    for head in ('start', 'zero'):
        model = move_away(build(tiny_pretrained, dict(type='L2SP', alpha=0.3, beta=0.2, head=head)))
        losses = model(*batch, mode='loss')
        assert set(losses) == {'loss_cls', 'loss_l2sp'}
        tower = sum((a - b).square().sum() for a, b in zip(model.backbone.parameters(), start.backbone.parameters()))
        kept = [0 * p for p in start.head.parameters()] if head == 'zero' else start.head.parameters()
        classifier = sum((a - b).square().sum() for a, b in zip(model.head.parameters(), kept))
        torch.testing.assert_close(losses['loss_l2sp'], 0.15 * tower + 0.1 * classifier)
        losses['loss_l2sp'].backward()
        torch.testing.assert_close(
            model.backbone.visual.proj.grad, 0.3 * (model.backbone.visual.proj - start.backbone.visual.proj)
        )


def test_carft_step(tiny_pretrained, batch, clip):
    model = move_away(build(tiny_pretrained, dict(type='CARFT', weight=0.7)))
    losses = model(*batch, mode='loss')
    whole, tokenizer = clip
    with torch.no_grad():
        contexts = []
        for template in TEMPLATES:
            mean = torch.stack(
                [whole.encode_text(tokenizer([template.format(name)]), normalize=True)[0] for name in NAMES]
            ).mean(0)
            contexts.append(mean / mean.norm())
        old = whole.encode_image(batch[0], normalize=True) @ torch.stack(contexts).T
        new = torch.nn.functional.normalize(model.extract_feat(batch[0])[-1]) @ torch.stack(contexts).T
    scale = whole.logit_scale.exp()
    p0, p = (scale * old).softmax(1), (scale * new).softmax(1)
    torch.testing.assert_close(losses['loss_carft'], 0.7 * (p0 * (p0.log() - p.log())).sum(1).mean())
    assert losses['loss_carft'].requires_grad and losses['loss_carft'] > 1e-4


def test_lipsum_step(tiny_pretrained, batch, clip):
    model = move_away(build(tiny_pretrained, dict(type='LipsumFT', weight=0.7, num_texts=5, length=3)))
    torch.manual_seed(8)
    loss = model(*batch, mode='loss')['loss_lipsum']
    whole, tokenizer = clip
    torch.manual_seed(8)
    tokens = random_tokens(5, 3, 16, tokenizer.sot_token_id, tokenizer.eot_token_id)
    with torch.no_grad():
        texts = whole.encode_text(tokens, normalize=True)
        gap = (
            whole.logit_scale.exp()
            * (
                torch.nn.functional.normalize(model.extract_feat(batch[0])[-1])
                - whole.encode_image(batch[0], normalize=True)
            )
            @ texts.T
        )
    torch.testing.assert_close(loss, 0.7 * gap.square().sum(1).mean() / 10)
    assert model(*batch, mode='loss')['loss_lipsum'] != loss  # other texts in the next step


def test_teacher_looks_once_at_an_image(tiny_pretrained, batch, monkeypatch):
    """However many losses ask for it, unmasked distillation among them."""
    model = build(
        tiny_pretrained, dict(type='CARFT'), dict(type='LipsumFT', num_texts=2), dict(type='L2SP'), distill='feature'
    )
    model.data_preprocessor.mask = None
    looks = []
    monkeypatch.setattr(
        type(model.teacher), '__call__', lambda self, images: looks.append(1) or self.forward(images), raising=False
    )
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_distill', 'loss_carft', 'loss_lipsum', 'loss_l2sp'} and len(looks) == 1


def test_with_counterfactuals_beside(tiny_pretrained, batch):
    losses = build(tiny_pretrained, dict(type='CARFT'), distill='feature')(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_carft', 'loss_distill'}


def test_two_of_one_type_add_up(tiny_pretrained, batch):
    settings = (
        dict(type='CARFT', templates=['a {}.', '{} in the rain']),
        dict(type='CARFT', templates=['{}', 'a sketch of the {}.']),
    )
    first, second = (move_away(build(tiny_pretrained, cfg))(*batch, mode='loss')['loss_carft'] for cfg in settings)
    both = move_away(build(tiny_pretrained, *settings))(*batch, mode='loss')
    assert first != second and set(both) == {'loss_cls', 'loss_carft', 'loss_carft_2'}
    torch.testing.assert_close([both['loss_carft'], both['loss_carft_2']], [first, second])


# FLYP
# ----------------------------------------------------------------------------------------------------------------------


def flyp(pretrained, **kwargs):
    return build(pretrained, dict(type='FLYP', **kwargs), teacher=False, cls_weight=0.0)


def test_flyp_step(tiny_pretrained, batch, clip):
    model = flyp(tiny_pretrained, weight=0.5)
    torch.manual_seed(8)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_flyp'}
    whole, tokenizer = clip
    torch.manual_seed(8)
    prompts = [TEMPLATES[i].format(NAMES[label]) for i, label in zip(torch.randint(3, (4,)).tolist(), (0, 2, 2, 1))]
    images, texts = whole.encode_image(batch[0]), whole.encode_text(tokenizer(prompts))
    similar = (
        whole.logit_scale.exp()
        * (images / images.norm(dim=1, keepdim=True))
        @ (texts / texts.norm(dim=1, keepdim=True)).T
    )
    total = 0
    for i in range(4):
        total = (
            total
            - (similar[i, i].exp() / similar[i].exp().sum()).log()
            - (similar[i, i].exp() / similar[:, i].exp().sum()).log()
        )
    torch.testing.assert_close(losses['loss_flyp'], 0.5 * total / 8)

    losses['loss_flyp'].backward()
    (0.5 * total / 8).backward()
    text = model.auxiliary[0].text
    for ours, theirs in [
        (model.backbone.visual.proj, whole.visual.proj),
        (text.logit_scale, whole.logit_scale),
        (text.token_embedding.weight, whole.token_embedding.weight),
    ]:
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert all(p.grad is None for p in model.head.parameters())


def head_of(text, tokenizer):
    """The head that a text tower makes, by a loop."""
    rows = []
    with torch.no_grad():
        for name in NAMES:
            mean = torch.stack(
                [text.encode_text(tokenizer([template.format(name)]), normalize=True)[0] for template in TEMPLATES]
            ).mean(0)
            rows.append(text.logit_scale.exp() * mean / mean.norm())
    return torch.stack(rows)


def train_a_little(model, batch, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(*batch, mode='loss').values()).backward()
        optimizer.step()


def test_flyp_head_is_made_by_the_text_tower_as_it_is(tiny_pretrained, batch, monkeypatch):
    model = flyp(tiny_pretrained)
    start = model.head.fc.weight.clone()
    train_a_little(model, batch)
    assert torch.equal(model.head.fc.weight, start)  # no part of training
    loss = model.auxiliary[0]
    expected = head_of(loss.text, loss.tokenizer)
    assert (expected - start).abs().max() > 1e-2

    torch.testing.assert_close(model.state_dict()['head.fc.weight'], expected)  # saving
    train_a_little(model, batch)
    expected = head_of(loss.text, loss.tokenizer)
    torch.testing.assert_close(model.eval().head.fc.weight, expected)  # evaluation
    monkeypatch.setattr('mmcfmask.models.losses.flyp.text_class_weights', None)  # not again for the same text tower
    model.eval(), model.state_dict()

    tested = build(None, teacher=False)
    tested.load_state_dict(model.state_dict())  # strict: the text tower in it is no surprise
    assert not any('auxiliary' in name for name in tested.state_dict())
    torch.testing.assert_close(tested.eval()(batch[0]), model(batch[0]))


def test_flyp_checkpoint_loads_without_a_warning_and_resumes(tiny_pretrained, batch, capsys):
    model = flyp(tiny_pretrained)
    train_a_little(model, batch)
    state = model.state_dict()
    load_state_dict(build(None, teacher=False), state)  # mmengine's
    assert 'unexpected' not in capsys.readouterr().out
    again = flyp(tiny_pretrained)
    load_state_dict(again, state)
    assert torch.equal(again.auxiliary[0].text.token_embedding.weight, model.auxiliary[0].text.token_embedding.weight)


def test_flyp_average_has_the_head_of_its_own_text_tower(tiny_pretrained, batch):
    model = flyp(tiny_pretrained)
    average = ExponentialMovingAverage(model, momentum=0.5)
    for _ in range(3):
        train_a_little(model, batch, steps=1)
        average.update_parameters(model)
    loss, averaged = model.auxiliary[0], average.module.auxiliary[0]
    assert (loss.text.text_projection - averaged.text.text_projection).abs().max() > 1e-4
    torch.testing.assert_close(
        average.state_dict()['module.head.fc.weight'], head_of(averaged.text, averaged.tokenizer)
    )
    torch.testing.assert_close(model.state_dict()['head.fc.weight'], head_of(loss.text, loss.tokenizer))


# what stays out, and what is missing
# ---------------------------------------------------------------------------------------


def test_frozen_parts_stay_out_of_everything(tiny_pretrained, batch):
    model = build(tiny_pretrained, dict(type='L2SP'), dict(type='CARFT'), dict(type='LipsumFT', num_texts=2))
    plain = build(tiny_pretrained)
    assert set(model.state_dict()) == set(plain.state_dict())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}
    average = ExponentialMovingAverage(model)
    assert average.module.teacher is model.teacher
    before = copy.deepcopy(model.teacher.state_dict())
    train_a_little(model, batch)
    assert all(torch.equal(before[name], value) for name, value in model.teacher.state_dict().items())
    assert any(name.startswith('text.') for name in before)
    model.double()
    assert {p.dtype for p in model.teacher.text.parameters()} == {torch.float64} and model.auxiliary[
        1
    ].contexts.dtype == torch.float64


def test_example_of_the_docs(tiny_pretrained, batch, tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / 'docs' / 'methods.md').read_text()
    module, config = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (tmp_path / 'my_losses.py').write_text('import torch\n' + module)
    (tmp_path / 'config.py').write_text(config)
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = Config.fromfile(tmp_path / 'config.py').model
    model = move_away(build(tiny_pretrained, *cfg.auxiliary, distill=cfg.head.distill))
    losses = model(*batch, mode='loss')
    cosine = (
        sum(
            dot(unit(a), unit(b))
            for a, b in zip(model.extract_feat(batch[0])[-1].tolist(), model.teacher(batch[0]).tolist())
        )
        / 4
    )
    assert set(losses) == {'loss_cls', 'loss_cosine'} and losses['loss_cosine'].item() == pytest.approx(
        10 * (1 - cosine), rel=1e-4
    )


@pytest.fixture
def textless(tiny_pretrained, tmp_path):
    state = torch.load(tiny_pretrained, weights_only=True)
    torch.save({key: value for key, value in state.items() if key.startswith('visual.')}, tmp_path / 'visual.pt')
    return str(tmp_path / 'visual.pt')


@pytest.mark.parametrize('name', ['CARFT', 'LipsumFT', 'FLYP'])
def test_text_tower_is_missing(textless, name):
    texts = {} if name == 'LipsumFT' else dict(classnames=NAMES, templates=TEMPLATES)
    with pytest.raises(
        ValueError, match=rf'{name} needs a text tower, but .*visual.pt has no text tower: choose weights of the whole'
    ):
        build(textless, dict(type=name, **texts), class_weights=None, cls_weight=0.0)


@pytest.mark.parametrize(
    'auxiliary, head, message',
    [
        (
            dict(type='CARFT'),
            dict(class_weights=None),
            r'CARFT needs prompts: give it classnames=\[…\] and templates=…',
        ),
        (dict(type='CARFT', classnames=['one']), {}, 'CARFT has 1 classnames, but the head has num_classes=3'),
        (dict(type='CARFT', weight=-1), {}, 'CARFT: weight=-1 must not be negative'),
        (dict(type='LipsumFT', length=15), {}, "length=15, but the texts of 'tiny-vit' have 16 tokens"),
        (dict(type='LipsumFT', num_texts=0), {}, 'num_texts=0'),
        (dict(type='FLYP'), {}, r'set model.head.cls_weight=0 \(it is 1.0\)'),
        (dict(type='FLYP'), dict(cls_weight=0.0, distill='logits'), "could train: use 'feature', or teacher=None"),
        (dict(type='L2SP', head='none'), {}, 'unknown head=\'none\': choose "start" or "zero"'),
        (dict(type='L2SP', beta=-1.0), {}, 'beta=-1.0 must not be negative'),
    ],
)
def test_bad_settings(tiny_pretrained, auxiliary, head, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_pretrained, auxiliary, **head)


@pytest.mark.parametrize('name', ['L2SP', 'CARFT', 'LipsumFT'])
def test_teacher_is_missing(tiny_pretrained, name):
    with pytest.raises(
        ValueError, match=rf"{name} compares with the frozen start: set model.teacher=dict\(type='OpenCLIPTeacher'\)"
    ):
        build(tiny_pretrained, dict(type=name), teacher=False)


@pytest.mark.parametrize(
    'auxiliary', [dict(type='L2SP'), dict(type='CARFT', classnames=['a', 'b', 'c']), dict(type='LipsumFT')]
)
def test_teacher_must_be_the_start(tiny_pretrained, tmp_path, auxiliary):
    other = tmp_path / 'other.pt'
    torch.save(torch.load(tiny_pretrained, weights_only=True), other)
    with pytest.raises(ValueError, match='the teacher is another model: leave out its model_name'):
        MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
                head=dict(type='CLIPDistillHead', num_classes=3),
                teacher=dict(type='OpenCLIPTeacher', model_name='tiny-vit', pretrained=str(other)),
                auxiliary=[auxiliary],
            )
        )


def test_texts_of_a_tower_without_a_name(tiny_pretrained, batch):
    """mmpretrain's own vision transformer, with the text tower named."""
    from mmcfmask.models.towers.conversion import mmpretrain_config

    cfg = dict(
        type='CounterfactualClassifier',
        **mmpretrain_config('tiny-vit'),
        head=dict(type='CLIPDistillHead', num_classes=3, distill=None),
        teacher=dict(type='OpenCLIPTeacher'),
    )
    with pytest.raises(ValueError, match='has no text tower of its own: name one with model_name='):
        MODELS.build(dict(cfg, auxiliary=[dict(type='LipsumFT')]))
    model = MODELS.build(
        dict(cfg, auxiliary=[dict(type='LipsumFT', num_texts=2, model_name='tiny-vit', pretrained=tiny_pretrained)])
    )
    assert set(model.train()(*batch, mode='loss')) == {'loss_cls', 'loss_lipsum'}
