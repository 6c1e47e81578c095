import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.evaluation import Accuracy, ConfusionMatrix
from mmpretrain.structures import DataSample

from mmcfmask.evaluation import ShiftAccuracy
from mmcfmask.evaluation.set_evaluator import SetEvaluator

GROUPS = ((4,), (0, 2), (5,))  # three classes of a head with six


class Kept(BaseMetric):
    default_prefix = 'kept'
    seen = ()

    def process(self, data_batch, data_samples):
        self.seen = [*self.seen, *data_samples]
        self.results += data_samples

    def compute_metrics(self, results):
        return {}


def evaluate(metrics, groups, samples):
    evaluator = SetEvaluator(metrics)
    evaluator.dataset_meta = dict(classes=('a', 'b', 'c')[: len(groups or 'abcdef')], label_groups=groups)
    evaluator.process(samples[:30])
    evaluator.process(samples[30:])
    return evaluator.evaluate(len(samples))


def make_samples(count=50, logits=True):
    samples = []
    for index in range(count):
        values = torch.randn(6)
        sample = DataSample().set_gt_label(index % 3).set_pred_score(values.softmax(dim=0))
        sample.set_pred_label(values.argmax()).set_field(index, 'sample_idx', field_type='metainfo')
        if logits:
            sample.set_field(values, 'pred_logits')
        samples.append(sample)
    return samples


def test_metrics_of_mmpretrain_judge_by_the_classes_of_the_set():
    """By hand: the highest logit of each class, one image at a time."""
    for logits in (True, False):
        samples = make_samples(logits=logits)
        shown = evaluate([Accuracy(), ConfusionMatrix(), ShiftAccuracy(prefix='ours')], GROUPS, samples)
        matrix = torch.zeros(3, 3, dtype=torch.long)
        for sample in samples:
            scores = [max(sample.pred_score[index].item() for index in group) for group in GROUPS]
            matrix[int(sample.gt_label), scores.index(max(scores))] += 1
        assert torch.equal(shown['confusion_matrix/result'], matrix)
        correct = 100 * matrix.diagonal().sum().item() / 50
        assert 0 < correct < 100 and shown['accuracy/top1'] == pytest.approx(correct)
        assert shown['ours/top1'] == pytest.approx(correct)
        assert samples[0].pred_score.shape == (6,)  # the samples themselves stay


def test_a_set_with_the_classes_of_the_head_is_passed_as_it_is():
    samples, kept = make_samples(), Kept()
    evaluate([kept], None, samples)
    assert all(torch.equal(seen['pred_score'], sample.pred_score) for seen, sample in zip(kept.seen, samples))
