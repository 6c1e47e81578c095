"""A resumed run ends as if nothing had happened."""

import pytest
import torch
from shards import make_tars, rows
from short_runs import Killed, config, losses, train, weights

from mmcfmask.engine.checkpoints import check_checkpoint

TEN = dict.fromkeys(map(str, range(10)), 4)  # images of each class
CONTEXT_TERMS = [
    dict(type='CounterfactualDistillation'),
    dict(type='CounterfactualCrossEntropy', counterfactual=dict(mask='context', mask_share=0.6)),
    dict(type='ContextInvariance', counterfactual=dict(mask='random', color_mixing=0.5, donors='other_class')),
]


@pytest.mark.parametrize(
    'options',
    [
        {'model.data_preprocessor.mask': 'object', 'model.data_preprocessor.fill': 'single'},
        {'model.data_preprocessor.mask': 'random', 'model.data_preprocessor.fill': 'multi'},
        {'model.data_preprocessor.donors': 'other_class', 'model.losses': CONTEXT_TERMS},
        {'model.backbone.lora': dict(rank=2)},
        {'model.backbone.r_adapter': dict(drop=0.5), 'model.teacher': None, 'model.losses': []},
        {  # a teacher that moves, and an optimizer that knows where the training began
            'model.losses': [dict(type='CounterfactualDistillation'), dict(type='CaRotImage', interval=0.2)],
            'optim_wrapper.optimizer.type': 'AdamSPD',
            'optim_wrapper.optimizer.weight_decay': 0.0,
        },
    ],
)
def test_resume_in_the_middle_of_an_epoch_goes_on_as_if_nothing_had_happened(
    tmp_path, tiny_pretrained, monkeypatch, options
):
    cfg = config(tmp_path / 'whole', tiny_pretrained, **options)
    train(cfg)

    from mmcfmask.engine.train_loop import ResumableEpochLoop

    original = ResumableEpochLoop.run_iter

    def killed_at_eighth(self, idx, data_batch):
        if self._iter == 7:
            raise Killed
        original(self, idx, data_batch)

    checkpoints = dict(type='CheckpointHook', by_epoch=False, interval=3)
    cfg = config(tmp_path / 'cut', tiny_pretrained, **options)
    cfg.custom_hooks.append(checkpoints)
    monkeypatch.setattr(ResumableEpochLoop, 'run_iter', killed_at_eighth)
    with pytest.raises(Killed):
        train(cfg)
    monkeypatch.setattr(ResumableEpochLoop, 'run_iter', original)
    cfg = config(tmp_path / 'cut', tiny_pretrained, resume=True, **options)
    train(cfg)

    whole, cut = losses(tmp_path / 'whole'), losses(tmp_path / 'cut')
    assert len(whole) == 10 and set(cut) == set(whole)
    assert cut == whole
    expected, got = weights(tmp_path / 'whole' / 'epoch_2.pth'), weights(tmp_path / 'cut' / 'epoch_2.pth')
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_shards_go_on_in_the_middle_of_an_epoch(tmp_path, tiny_pretrained, monkeypatch):
    """Read by shards; no image comes twice in an epoch or is left out."""
    from mmcfmask.engine.train_loop import ResumableEpochLoop

    make_tars(tmp_path / 'shards', [dict(key=f'{row[0]}/{row[1][:-4]}', png=row[3]) for row in rows(TEN)], 7)
    load = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='Resize', scale=32)]
    original, seen = ResumableEpochLoop.run_iter, []

    def run(name, stop=None, resume=False):
        cfg = config(tmp_path / name, tiny_pretrained, resume=resume)
        pipeline = [*load, dict(type='PackInputs')]
        cfg.train_dataloader.dataset = dict(type='FolderDataset', data_root=str(tmp_path / 'shards'), pipeline=pipeline)
        cfg.train_dataloader.sampler = dict(type='ShardSampler', shuffle=True, buffer=16)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.default_hooks.checkpoint.save_best = None
        cfg.custom_hooks.append(dict(type='CheckpointHook', by_epoch=False, interval=3))

        def watched(self, idx, data_batch):
            if self._iter == stop:
                raise Killed
            seen.append([sample.img_path for sample in data_batch['data_samples']])
            original(self, idx, data_batch)

        monkeypatch.setattr(ResumableEpochLoop, 'run_iter', watched)
        train(cfg)

    run('whole')
    whole, seen[:] = seen[:], []
    with pytest.raises(Killed):
        run('cut', stop=7)
    seen[6:] = []  # the checkpoint is of the sixth iteration
    run('cut', resume=True)
    assert seen == whole and len(whole) == 10
    for epoch in (whole[:5], whole[5:]):
        assert len({path for batch in epoch for path in batch}) == 40
    assert losses(tmp_path / 'whole') == losses(tmp_path / 'cut')


@pytest.mark.parametrize('epoch', [1, 2])
def test_run_killed_in_a_validation_begins_with_it(tmp_path, tiny_pretrained, monkeypatch, epoch):
    """The checkpoint of an epoch is saved before its validation, the best one after it."""
    from mmengine.runner import ValLoop

    original, validated = ValLoop.run, []

    def killed(self):
        validated.append(self.runner.epoch)
        if self.runner.epoch == epoch and validated.count(epoch) == 1:
            raise Killed
        original(self)

    monkeypatch.setattr(ValLoop, 'run', killed)
    with pytest.raises(Killed):
        train(config(tmp_path, tiny_pretrained))
    train(config(tmp_path, tiny_pretrained, resume=True))
    assert validated == {1: [1, 1, 2], 2: [1, 2, 2]}[epoch]
    assert len(losses(tmp_path)) == 10 and (tmp_path / 'best.pth').is_file()


def test_epochs_end_with_an_optimizer_step(tmp_path, tiny_pretrained):
    """5 batches, 2 to a step: the last one is left out, so a run resumed after an epoch equals the whole one."""
    options = {'train_dataloader.batch_size': 8, 'total_batch_size': 16}
    train(config(tmp_path / 'whole', tiny_pretrained, **options))
    cut = config(tmp_path / 'cut', tiny_pretrained, **options)
    cut.custom_hooks.append(dict(type='CheckpointHook', interval=1, filename_tmpl='copy_{}.pth'))
    train(cut)
    for name in 'epoch_2.pth', 'copy_2.pth':
        (tmp_path / 'cut' / name).unlink()
    train(
        config(
            tmp_path / 'cut', tiny_pretrained, resume=True, load_from=str(tmp_path / 'cut' / 'copy_1.pth'), **options
        )
    )
    whole, cut = (torch.load(tmp_path / name / 'epoch_2.pth', weights_only=True) for name in ('whole', 'cut'))
    assert whole['meta']['iter'] == 8 and {int(state['step']) for state in whole['optimizer']['state'].values()} == {4}
    assert all(torch.equal(cut['state_dict'][name], value) for name, value in whole['state_dict'].items())
    with pytest.raises(
        ValueError, match='has 40 images, fewer than one optimizer step of 48 per process: lower total_batch_size'
    ):
        train(config(tmp_path, tiny_pretrained, total_batch_size=48))


def test_resume_needs_epochs_of_the_same_length(tmp_path, tiny_pretrained):
    train(config(tmp_path, tiny_pretrained))
    for size, batches in ((4, 10), (16, 2)):
        cfg = config(
            tmp_path,
            tiny_pretrained,
            resume=True,
            total_batch_size=size,
            **{'train_dataloader.batch_size': size, 'train_cfg.max_epochs': 4},
        )
        with pytest.raises(
            ValueError, match=f'had 5 batches per epoch and process, this one has {batches}: resume with the same'
        ):
            train(cfg)


def test_old_checkpoints_are_deleted_after_a_resume_too(tmp_path, tiny_pretrained):
    """Two checkpoint hooks, each with its own two files; those of an earlier run are not touched."""

    def run(epochs, **options):
        cfg = config(
            tmp_path,
            tiny_pretrained,
            **{'train_cfg.max_epochs': epochs, 'default_hooks.checkpoint.max_keep_ckpts': 2, **options},
        )
        cfg.custom_hooks.append(
            dict(
                type='CheckpointHook',
                by_epoch=False,
                interval=2,
                max_keep_ckpts=2,
                filename_tmpl='resume_{}.pth',
                save_last=False,
            )
        )
        train(cfg)
        return sorted(path.name for path in tmp_path.glob('*_*.pth') if 'best' not in path.name)

    (tmp_path / 'epoch_99.pth').touch()
    assert run(3) == ['epoch_2.pth', 'epoch_3.pth', 'epoch_99.pth', 'resume_12.pth', 'resume_14.pth']
    assert run(4, resume=True) == ['epoch_3.pth', 'epoch_4.pth', 'epoch_99.pth', 'resume_18.pth', 'resume_20.pth']
    assert run(5, resume=True) == ['epoch_4.pth', 'epoch_5.pth', 'epoch_99.pth', 'resume_22.pth', 'resume_24.pth']


def test_resume_from_another_work_dir_deletes_nothing_there(tmp_path, tiny_pretrained):
    train(config(tmp_path / 'first', tiny_pretrained))
    best = tmp_path / 'first' / 'best.pth'
    state = torch.load(tmp_path / 'first' / 'epoch_2.pth', weights_only=True)
    state['message_hub']['runtime_info']['best_score'] = -1.0  # will be beaten
    torch.save(state, tmp_path / 'resumed.pth')
    cfg = config(
        tmp_path / 'second',
        tiny_pretrained,
        resume=True,
        load_from=str(tmp_path / 'resumed.pth'),
        **{'train_cfg.max_epochs': 3},
    )
    train(cfg)
    assert best.is_file() and (tmp_path / 'second' / 'best.pth').is_file()


def test_of_equally_accurate_checkpoints_the_likelier_is_the_best(tmp_path, tiny_pretrained, monkeypatch):
    """Also where the run was resumed in between."""
    from mmcfmask.evaluation import ShiftAccuracy

    found = iter(
        [
            (40.0, 0.5),
            (60.0, 0.9),
            (60.0, 0.8),  # a resumed run begins with the last validation
            (60.0, 0.8),
            (60.0, 0.85),
            (60.0, 0.85),
            (60.0, 0.79),
            (59.0, 0.1),
        ]
    )
    monkeypatch.setattr(
        ShiftAccuracy, 'evaluate', lambda self, size: dict(zip(('accuracy/top1', 'accuracy/nll'), next(found)))
    )
    best = []
    for epochs in 3, 4, 6:  # what is said of the run is read again from its checkpoint
        train(config(tmp_path, tiny_pretrained, resume=epochs > 3, **{'train_cfg.max_epochs': epochs}))
        best.append(check_checkpoint(str(tmp_path / 'best.pth'))['meta'])
    assert [(meta['epoch'], meta['best']['value']) for meta in best] == [(3, 60.0), (3, 60.0), (5, 60.0)]
