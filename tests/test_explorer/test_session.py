"""What the explorer computes, against what training and tests compute."""

from dataclasses import replace

import pytest
import torch
from mmpretrain.registry import MODELS
from PIL import Image

from mmcfmask.counterfactual import object_coverage, record_attention, relevance_map
from mmcfmask.engine.config import load_config
from mmcfmask.engine.testing import build_model
from mmcfmask.errors import UserError
from mmcfmask.explorer.images import Source
from mmcfmask.explorer.session import CLEANED, OBJECT, PUBLISHED, Choice, Explorer
from mmcfmask.explorer.towers import ZERO_SHOT
from mmcfmask.models.interpolation import interpolate
from mmcfmask.models.losses import Step
from mmcfmask.models.maker import PUBLISHED_VALUES, CounterfactualMaker

SIZE = 24  # images of a set, of which little is rendered
SMALL = {f'test_dataloader.{name}.dataset.size': SIZE for name in ('test', 'v2', 'r', 'sketch', 'a', 'groups')}
CLASSES = [f'the {name}' for name in 'abcdefghij']
IMAGE, DONOR = Source('test', 3), Source('test', 5)


def shapes_config(method='cfmask', **options):
    return load_config(f'configs/shapes/{method}.py', {**SMALL, **options})


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Weights that are not the pretrained ones."""
    torch.manual_seed(0)
    model = build_model(shapes_config().model)
    state = {
        name: value + 0.03 * torch.randn_like(value) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    path = tmp_path_factory.mktemp('ft') / 'best.pth'
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=state, meta=meta), path)
    return str(path)


@pytest.fixture(scope='module')
def explorer(checkpoint):
    return Explorer(shapes_config(), [checkpoint])


@pytest.fixture(scope='module')
def fine_tuned(explorer):
    return list(explorer.towers)[1]


@pytest.fixture
def choice(explorer):
    return replace(explorer.default_choice(IMAGE), donor=DONOR)


@pytest.mark.parametrize('method, map_kind', [('cfmask', PUBLISHED), ('cfmask_plus', CLEANED)])
def test_counterfactual_is_that_of_a_training_step(method, map_kind):
    """The batch of the image and the donor, in the step of the training of the config."""
    changes = {} if method == 'cfmask' else {'model.data_preprocessor.views': None}
    cfg = shapes_config(method, **changes, **{'model.data_preprocessor.color_mixing': 0.0})
    explorer = Explorer(cfg)
    choice = replace(explorer.default_choice(IMAGE), donor=DONOR)
    assert choice.map == map_kind
    look = explorer.look(choice)

    model = MODELS.build(cfg.model).eval()
    dataset = explorer.shelf.dataset('test')
    items = [dataset[source.index] for source in (IMAGE, DONOR)]
    samples = [item['data_samples'] for item in items]
    batch = model.data_preprocessor(dict(inputs=[item['inputs'] for item in items], data_samples=samples), True)
    with record_attention(model.backbone, batch['inputs']) as attention:
        feats = model.extract_feat(batch['inputs'])
        logits = model.head(feats)
    labels = torch.tensor([int(sample.gt_label) for sample in samples])
    step = Step(model, batch['inputs'], labels, feats[-1], logits, attention, samples)
    assert look.choice.label == labels[0]
    torch.testing.assert_close(look.relevance, step.relevance[0])
    assert 0 < look.mask.sum() < look.mask.numel() and torch.equal(look.mask, step.counterfactual.mask[0])
    assert torch.equal(look.made.images[0], step.counterfactual.images[0])


@pytest.mark.parametrize('mask, fill', PUBLISHED_VALUES)
def test_every_mask_and_fill(explorer, choice, mask, fill):
    choice = explorer.with_usual_value(replace(choice, mask=mask, fill=fill, seed=3))
    assert choice.value == PUBLISHED_VALUES[mask, fill]
    look = explorer.look(choice)
    sources = [IMAGE, *explorer.donors(choice)]
    assert len(sources) == dict(none=1, single=2, multi=8)[fill] == len(set(sources)) and IMAGE not in sources[1:]
    batch = torch.cat([explorer.inputs(source) for source in sources])
    relevance = torch.rand(len(batch), 8, 8)  # of the donors: it does not matter
    relevance[0] = look.relevance
    made = CounterfactualMaker(mask, fill).counterfactual(batch, (8, 8), relevance, torch.Generator().manual_seed(3))
    assert torch.equal(look.mask, made.mask[0]) and torch.equal(look.made.images[0], made.images[0])
    assert look.made.hidden == (fill == 'none') and look.made.kept == made.kept
    changed = (look.counterfactual - look.image).abs().amax(0) > 1e-6
    assert not changed[~look.mask.repeat_interleave(8, 0).repeat_interleave(8, 1)].any() and changed.any()


def test_class_names(explorer):
    """Those of the checkpoint, or else of the data set."""
    assert explorer.classes == CLASSES and Explorer(shapes_config()).classes[3] == 'star'


def test_share_of_patches(explorer, choice):
    look = explorer.look(explorer.with_usual_value(choice, share=True))
    assert look.choice.mask_share == 0.5 and look.mask.sum() == 32
    assert explorer.look(replace(look.choice, mask_share=0.25)).mask.sum() == 16


def test_predictions_are_those_of_a_test(explorer, choice, checkpoint, fine_tuned):
    """Of both models, for the image, the counterfactual image, and one with hidden patches."""
    for fill in ('single', 'none'):
        look = explorer.look(replace(choice, fill=fill, mask='random', value=0.5))
        models = {ZERO_SHOT: build_model(shapes_config().model)}
        models[fine_tuned] = build_model(shapes_config().model, torch.load(checkpoint), checkpoint)
        assert [answer.tower for answer in look.answers] == list(models)
        for answer, model in zip(look.answers, models.values()):
            with torch.no_grad():
                torch.testing.assert_close(answer.image, model(explorer.inputs(IMAGE)).softmax(1)[0])
                whole = model(look.made.images).softmax(1)[0]
            assert torch.allclose(answer.counterfactual, whole) == (fill == 'single')


def test_alpha_is_wise_ft(explorer, choice, checkpoint, fine_tuned):
    theta1 = torch.load(checkpoint)['state_dict']
    model = build_model(shapes_config().model)
    theta0 = {name: value.clone() for name, value in model.state_dict().items()}
    for alpha in (0.0, 0.3, 1.0, 0.3):
        look = explorer.look(replace(choice, alpha=alpha, tower=fine_tuned))
        model.load_state_dict(interpolate(theta0, theta1, alpha))
        with torch.no_grad():
            torch.testing.assert_close(look.answers[1].image, model(explorer.inputs(IMAGE)).softmax(1)[0])
        labels = torch.tensor([choice.label])
        torch.testing.assert_close(look.relevance[None], relevance_map(model, explorer.inputs(IMAGE), labels))
    zero, one = (explorer.look(replace(choice, alpha=alpha)).answers for alpha in (0, 1))
    assert torch.equal(zero[0].image, one[0].image) and torch.equal(zero[0].image, zero[1].image)
    assert not torch.allclose(zero[1].image, one[1].image)


def test_maps(explorer, choice):
    model, image = explorer.towers[ZERO_SHOT].model, explorer.inputs(IMAGE)
    label = torch.tensor([choice.label])
    truth = torch.as_tensor(explorer.shelf.dataset('test').get_data_info(3)['gt_mask'])
    for kind, expected in {
        PUBLISHED: relevance_map(model, image, label),
        CLEANED: relevance_map(model, image, label, outliers=6.0, smooth='mean'),
        OBJECT: object_coverage(truth[None], (8, 8)),
    }.items():
        look = explorer.look(replace(choice, map=kind))
        torch.testing.assert_close(look.relevance[None], expected)
        assert torch.equal(look.object, truth)
    assert not torch.equal(explorer.look(choice).relevance, explorer.look(replace(choice, label=0)).relevance)


def test_options_of_the_config_are_those_of_the_map():
    explorer = Explorer(shapes_config('cfmask_plus', **{'model.data_preprocessor.relevance': dict(smooth='median')}))
    choice = explorer.default_choice(IMAGE)
    assert explorer.map_options == dict(outliers=6.0, smooth='median') and choice.map == CLEANED
    assert (choice.mask, choice.fill, choice.value, choice.mask_share) == ('context', 'single', None, 0.6)
    labels = [explorer.shelf.label(source, 10) for source in explorer.donors(replace(choice, fill='multi'))]
    assert len(labels) == 7 and choice.label not in labels  # donors='other_class'
    assert set(explorer.changes) == {'views', 'color_mixing'}
    plain, other, again = (
        explorer.look(replace(choice, changes=changes, seed=seed)).counterfactual
        for changes, seed in ((False, 0), (True, 1), (True, 1))
    )
    assert torch.equal(other, again) and not torch.equal(plain, other)


def test_another_threshold_needs_no_other_relevance(explorer, choice, monkeypatch):
    explorer.look(choice)
    monkeypatch.setattr('mmcfmask.explorer.session.relevance_map', None)
    shares = [explorer.look(replace(choice, value=value)).mask.float().mean().item() for value in (0.1, 0.5, 0.9)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[2]


def test_drawn_again(explorer, choice):
    again = explorer.drawn_again(choice)
    assert again.seed == 1 and again.donor.name == 'test' and again.donor not in (IMAGE, DONOR)
    assert again == explorer.drawn_again(choice)
    random, other = (explorer.look(replace(drawn, mask='random', value=0.5)).mask for drawn in (choice, again))
    assert not torch.equal(random, other)
    file = Source('mine.png')
    assert explorer.drawn_again(replace(choice, donor=file)).donor == file


def test_files(explorer, choice, tmp_path):
    """A file is read as the images of the test: here it is one of them."""
    path = tmp_path / 'photo.png'
    Image.fromarray(explorer.shelf.dataset('test').get_data_info(3)['img']).save(path)
    found = explorer.with_image(choice, Source(str(path)))
    assert found.donor == DONOR and found.mask == choice.mask
    assert torch.equal(explorer.inputs(Source(str(path))), explorer.inputs(IMAGE))
    look = explorer.look(found)
    assert found.label == look.answers[0].image.argmax() and look.object is None  # the zero-shot prediction
    assert explorer.default_choice(Source(str(path))).donor.name == 'test'
    assert explorer.with_image(replace(choice, map=OBJECT), Source(str(path))).map == PUBLISHED
    assert explorer.with_image(choice, DONOR).donor not in (DONOR, None)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(value=1.5), 'must lie in'),
        (dict(donor=None), 'choose a donor'),
        (dict(donor=IMAGE), 'the donor is the image itself'),
        (dict(map='other'), 'there is no relevance map'),
        (dict(tower='other'), "there is no model 'other': choose zero-shot"),
        (dict(alpha=2.0), 'must lie in'),
        (dict(image=Source('test', 99)), 'test has 24 images'),
        (dict(image=Source('nowhere', 0)), 'no data set .nowhere.: choose test, val'),
        (dict(image=Source('none.png')), 'none.png'),
    ],
)
def test_mistakes(explorer, fine_tuned, choice, change, message):
    with pytest.raises(UserError, match=message):
        explorer.look(replace(choice, **{'tower': fine_tuned, **change}))
    explorer.look(choice)  # it goes on


def test_images_without_a_known_object(explorer, choice, tmp_path):
    Image.new('RGB', (80, 90), (200, 30, 30)).save(tmp_path / 'red.png')
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(UserError, match='the object of this image is not known'):
        explorer.look(replace(choice, image=Source(str(tmp_path / 'red.png')), map=OBJECT))
    with pytest.raises(UserError, match='^text.png cannot be read as an image'):
        explorer.with_image(choice, Source(str(tmp_path / 'text.png')))
    assert isinstance(choice, Choice)
