"""Predictions for images without labels."""

import csv

import pytest
import torch
from forks import run_script
from mmpretrain import ImageClassificationInferencer
from PIL import Image

from mmcfmask import load_model
from mmcfmask.datasets import ShapesDataset
from mmcfmask.engine.run_predict import list_images, run_predict
from mmcfmask.errors import UserError

CONFIG = 'configs/shapes/zeroshot.py'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Six images, in two folders, and a broken one."""
    root = tmp_path_factory.mktemp('photos')
    (root / 'more').mkdir()
    shapes = ShapesDataset('test', size=6)
    for index in range(6):
        Image.fromarray(shapes[index]['img']).save(root / ('more' if index % 2 else '.') / f'{index}.png')
    (root / 'broken.jpg').write_bytes(b'no image')
    (root / 'notes.txt').write_text('not an image')
    return root


def test_predictions_are_those_of_mmpretrains_inferencer(photos, tmp_path):
    out = tmp_path / 'predictions.csv'
    found = run_predict(CONFIG, None, photos, out=out, top=3, batch_size=4)
    names = ['0.png', '2.png', '4.png', 'broken.jpg', 'more/1.png', 'more/3.png', 'more/5.png']
    assert [row['path'] for row in found] == names
    inferencer = ImageClassificationInferencer(load_model(CONFIG))
    for row in found:
        if row['path'] == 'broken.jpg':
            assert 'broken.jpg cannot be read' in row['error'] and not row['classes'] and not row['probabilities']
            continue
        (expected,) = inferencer(str(photos / row['path']))
        values, labels = torch.as_tensor(expected['pred_scores']).topk(3)
        assert row['classes'] == [inferencer.classes[label] for label in labels] and row['error'] is None
        assert row['probabilities'] == pytest.approx(values.tolist(), abs=1e-5)
    with open(out, newline='') as file:
        rows = list(csv.DictReader(file))
    columns = 'path class probability class_2 probability_2 class_3 probability_3 error'
    assert list(rows[0]) == columns.split()
    assert [row['class'] for row in rows] == [(row['classes'] or [''])[0] for row in found]
    assert float(rows[0]['probability']) == pytest.approx(found[0]['probabilities'][0], abs=1e-6)
    assert 'cannot be read' in rows[3]['error'] and rows[3]['class_2'] == ''


def test_one_file_and_mistakes(photos, tmp_path):
    (row,) = run_predict(CONFIG, None, photos / 'more' / '3.png')
    assert row['path'] == '3.png' and len(row['classes']) == 1
    for call, message in (
        (lambda: run_predict(CONFIG, None, photos, top=11), '--top 11: the model has 10 classes'),
        (lambda: run_predict(CONFIG, None, photos, out=tmp_path), '--out .* is a folder'),
        (lambda: list_images(str(tmp_path / 'nowhere')), 'there is no image file or folder .*nowhere'),
        (lambda: list_images(str(tmp_path)), 'there is no image in the folder'),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_tool(photos, tmp_path):
    out = tmp_path / 'p.csv'
    done = run_script('tools/predict.py', CONFIG, 'none', photos, '--out', out)
    assert done.returncode == 0, done.stderr
    assert 'broken.jpg cannot be read' in done.stdout and '6 images, 1 that cannot be read' in done.stdout
    assert len(out.read_text().splitlines()) == 8
