"""Bad inputs, generated: values of a config, a study or a command line, and whether they must be refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TRAIN, STUDY = str(ROOT / 'configs' / 'shapes' / 'cfmask.py'), str(ROOT / 'studies' / 'shapes.yaml')
BIRDS = str(ROOT / 'configs' / 'waterbirds' / 'ft_vitb16.py')
NAN, INF = float('nan'), float('inf')


@dataclass
class Case:
    """One bad input.

    Attributes:
        name (str): Unique.
        tool (str): The command of ``mmcfmask`` to run.
        arguments (list[str]): Its arguments; ``{}`` stands for the folder of the case.
        files (dict): Name to content of files in that folder: a string, bytes, or a function of the path.
        options (dict): Overrides of the config, as Python values.
        environment (dict): Variables.
        says (str): Part of the error.
        may_run (bool): May be accepted.
        must_run (bool): Must be accepted: near to a bad input, but good.
    """

    name: str
    tool: str = 'train'
    arguments: list[str] = field(default_factory=lambda: [TRAIN])
    files: dict[str, str | bytes | Callable[[Path], None]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    says: str = ''
    may_run: bool = False
    must_run: bool = False


def cases() -> list[Case]:
    """All of them."""
    found = [
        *sections(),
        *numbers(),
        *switches(),
        *texts(),
        *names(),
        *keys(),
        *combinations(),
        *parts(),
        *groups(),
        *files(),
        *commands(),
        *studies(),
    ]
    assert len({case.name for case in found}) == len(found)
    return found


def value(key: str, wrong: Any, may_run: bool = False, says: str | None = None) -> Case:
    return Case(
        f'{key}={wrong!r}', options={key: wrong}, may_run=may_run, says=key.rpartition('.')[2] if says is None else says
    )


def sections() -> Iterator[Case]:
    """Whole sections of another type."""
    for key in (
        'model',
        'model.backbone',
        'model.head',
        'train_dataloader',
        'train_dataloader.dataset',
        'train_dataloader.sampler',
        'val_dataloader',
        'val_dataloader.dataset',
        'test_dataloader',
        'test_dataloader.test',
        'test_dataloader.r.dataset',
        'train_cfg',
        'optim_wrapper',
        'optim_wrapper.optimizer',
        'val_evaluator',
        'test_evaluator',
        'test_cfg',
        'env_cfg',
        'default_hooks.checkpoint',
        'randomness',
    ):
        for wrong in (None, 5, 'text', ['text'], True):
            if wrong is None and key in ('default_hooks.checkpoint', 'train_cfg'):
                continue  # no checkpoints; nothing to train, which says another thing
            yield value(key, wrong, says=key.partition('.')[0].partition('_')[0])
    for key in (
        'model.teacher',
        'model.data_preprocessor',
        'model.head.class_weights',
        'param_scheduler',
        'default_hooks',
        'custom_hooks',
        'visualizer',
        'optim_wrapper.clip_grad',
        'optim_wrapper.paramwise_cfg',
        'train_dataloader.collate_fn',
        'log_processor',
        'train_dataloader.dataset.pipeline',
        'val_cfg',
        'model.losses',
        'model.knn_gate',
    ):
        for wrong in (5, 'text', ['text']):
            yield value(key, wrong, says=key.partition('.')[0])


def numbers() -> Iterator[Case]:
    """Settings that are numbers: (key, also 0, also negative, whole, also None)."""
    for key, zero, negative, whole, none in (
        ('optim_wrapper.optimizer.lr', False, False, False, False),
        ('optim_wrapper.optimizer.weight_decay', True, False, False, False),
        ('optim_wrapper.optimizer.eps', True, False, False, False),
        ('optim_wrapper.clip_grad.max_norm', False, False, False, False),
        ('train_dataloader.batch_size', False, False, True, False),
        ('train_dataloader.num_workers', True, False, True, False),
        ('test_dataloader.r.batch_size', False, False, True, False),
        ('val_dataloader.num_workers', True, False, True, False),
        ('train_cfg.max_epochs', False, False, True, False),
        ('train_cfg.val_interval', False, False, True, False),
        ('default_hooks.checkpoint.interval', False, True, True, False),
        ('default_hooks.logger.interval', False, False, True, False),
        ('default_hooks.checkpoint.max_keep_ckpts', False, True, True, False),
        ('total_batch_size', False, False, True, True),
        ('model.head.num_classes', False, False, True, False),
        ('model.head.distill_weight', True, False, False, False),
        ('model.head.temperature', False, False, False, False),
        ('model.head.cls_weight', True, False, False, False),
        ('model.head.cls_temperature', False, False, False, False),
        ('model.data_preprocessor.value', True, False, False, True),
        ('model.data_preprocessor.color_mixing', True, False, False, False),
        ('train_dataloader.dataset.size', False, False, True, True),
        ('param_scheduler.pct_start', True, False, False, False),
        ('param_scheduler.div_factor', False, False, False, False),
        ('randomness.seed', True, False, True, True),
        ('optim_wrapper.accumulative_counts', False, False, True, False),
    ):
        for wrong in ('many', '0.1', [1], {}, True, NAN):
            yield value(key, wrong)
        yield value(key, 0, may_run=zero)
        yield value(key, -1, may_run=negative)
        yield value(key, -3)
        yield value(key, None, may_run=none)
        if whole:
            yield value(key, 1.5)
        else:
            yield value(key, -INF)
    for key, wrong in {
        'optim_wrapper.optimizer.betas': [0.9, 2.0],
        'model.data_preprocessor.mean': [1.0, NAN, 1.0],
        'model.data_preprocessor.std': [1.0, -1.0, 1.0],
        'optim_wrapper.optimizer.lr': 1e38,
        'randomness.seed': 2**40,
        'train_dataloader.batch_size': 10**12,
        'model.crop_scale': 1.5,
        'model.head.distill_weight': INF,
    }.items():
        yield value(key, wrong)
    yield value('model.data_preprocessor.std', [0.0, 1.0, 1.0])
    yield value('optim_wrapper.optimizer.betas', 0.9)
    yield value('optim_wrapper.optimizer.betas', ['a', 'b'])


def switches() -> Iterator[Case]:
    """Settings that are true or false."""
    for key in (
        'train_dataloader.drop_last',
        'train_dataloader.sampler.shuffle',
        'train_dataloader.persistent_workers',
        'default_hooks.checkpoint.by_epoch',
        'default_hooks.checkpoint.save_last',
        'model.data_preprocessor.to_rgb',
        'optim_wrapper.optimizer.fused',
        'model.backbone.frozen',
        'resume',
        'param_scheduler.by_epoch',
        'test_cfg.amp',
    ):
        for wrong in ('yes', 5, [True]):
            yield value(key, wrong)
    for wrong in (5, 'r', {}, [5]):
        yield value('test_cfg.skip_missing', wrong)


def texts() -> Iterator[Case]:
    """Settings that are texts, some of a few words."""
    for key in (
        'model.backbone.model_name',
        'model.backbone.pretrained',
        'model.head.distill',
        'model.data_preprocessor.mask',
        'model.data_preprocessor.fill',
        'model.data_preprocessor.donors',
        'test_cfg.id_set',
        'load_from',
        'work_dir',
        'cache_dir',
        'train_dataloader.dataset.split',
        'default_hooks.checkpoint.filename_tmpl',
        'model.teacher.model_name',
        'log_level',
    ):
        for wrong in (5.5, ['a'], {}):
            yield value(key, wrong, says='')
    for key in (
        'model.data_preprocessor.mask',
        'model.data_preprocessor.fill',
        'model.data_preprocessor.donors',
        'model.head.distill',
        'train_dataloader.dataset.split',
        'test_cfg.id_set',
        'log_level',
        'param_scheduler.anneal_strategy',
        'model.backbone.model_name',
        'model.backbone.pretrained',
        'model.teacher.precision',
        'default_hooks.checkpoint.save_best',
        'default_hooks.checkpoint.rule',
        'load_from',
    ):
        yield value(key, 'nonsense', says='nonsense')


def names() -> Iterator[Case]:
    """Misspelt classes."""
    for key, wrong, near in (
        ('model.type', 'CounterfactualClasifier', 'CounterfactualClassifier'),
        ('model.backbone.type', 'OpenClipBackbone', 'OpenCLIPBackbone'),
        ('model.head.type', 'CLIPDistilHead', 'CLIPDistillHead'),
        ('model.teacher.type', 'OpenCLIPTeachers', 'OpenCLIPTeacher'),
        ('optim_wrapper.type', 'OptimWraper', 'OptimWrapper'),
        ('optim_wrapper.optimizer.type', 'AdmaW', 'AdamW'),
        ('param_scheduler.type', 'OneCycel', 'OneCycle'),
        ('train_cfg.type', 'ResumableEpochLop', 'ResumableEpochLoop'),
        ('test_cfg.type', 'MultisetTestLoop', 'MultiSetTestLoop'),
        ('train_dataloader.dataset.type', 'ShapeDataset', 'ShapesDataset'),
        ('train_dataloader.sampler.type', 'ResumeableSampler', 'ResumableSampler'),
        ('val_evaluator.type', 'ShiftAcuracy', 'ShiftAccuracy'),
        ('train_dataloader.collate_fn.type', 'defaultcollate', 'default_collate'),
        ('default_hooks.logger.type', 'LogerHook', 'LoggerHook'),
        ('model.data_preprocessor.type', 'CAMRefillPreprocessor', 'CAMRefillDataPreprocessor'),
        ('visualizer.type', 'UniversalVisualiser', 'UniversalVisualizer'),
        ('model.head.class_weights.type', 'texts', 'text'),
    ):
        yield value(key, wrong, says=near)
        yield value(key, 5, says='')
    for key, part in {
        'custom_hooks': [dict(type='IterationSedHook')],
        'train_dataloader.dataset.pipeline': [dict(type='PackInput')],
        'model.losses': [dict(type='L2PS')],
        'val_evaluator': [dict(type='Acuracy')],
        'param_scheduler': [dict(type='OneCycel')],
    }.items():
        yield value(key, part, says=key.partition('.')[0])
    yield value('custom_imports', dict(imports=['no_such_module']), says='no_such_module')
    for own, near in (
        (dict(maks='context'), 'mask'),
        (dict(mask='contxt'), 'context'),
        (dict(mask='context', donors='others'), 'other_class'),
        (dict(mask='context', value=float('nan')), 'NaN'),
        (dict(mask='context', mask_share=True), 'mask_share'),
        (dict(mask='object'), 'context'),
        ([], 'dict'),
        ('context', 'dict'),
    ):
        yield value('model.losses', [dict(type='CounterfactualCrossEntropy', counterfactual=own)], says=near)
    yield value('model.losses', [dict(type='ContextInvariance', target='cleen')], says='clean')
    for own, near in (
        (dict(rank=0), 'rank'),
        (dict(rnk=8), 'rank'),
        (dict(targets=['atn']), 'attn'),
        (8, 'dict'),
    ):
        yield value('model.backbone.lora', own, says=near)
    for own, near in ((dict(drop=1.5), 'drop'), (dict(rank=0.5), 'rank'), (dict(drp=0.1), 'drop'), (True, 'dict')):
        yield value('model.backbone.r_adapter', own, says=near)


def keys() -> Iterator[Case]:
    """Keys that nothing takes."""
    for part in (
        'model',
        'model.backbone',
        'model.head',
        'model.teacher',
        'model.data_preprocessor',
        'train_dataloader',
        'train_dataloader.dataset',
        'train_dataloader.sampler',
        'optim_wrapper',
        'optim_wrapper.optimizer',
        'optim_wrapper.clip_grad',
        'param_scheduler',
        'train_cfg',
        'test_cfg',
        'val_evaluator',
        'default_hooks.checkpoint',
        'default_hooks.logger',
        'visualizer',
        'randomness',
        'test_dataloader.r',
        'test_dataloader.r.dataset',
        'model.head.class_weights',
        'custom_hooks.0',
    ):
        yield value(f'{part}.tpyo', 1)
    for key in (
        'tpyo',
        'optimwrapper.optimizer.lr',
        'modle.head.distill_weight',
        'train_dataloader..batch_size',
        'model.backbone.0.x',
        'custom_hooks.99.interval',
        'optim_wrapper.paramwise_cfg.nrom_decay_mult',
    ):
        yield value(key, 1, says='')


def combinations() -> Iterator[Case]:
    """Values that are right alone."""
    yield Case('no batch of two', options={'train_dataloader.batch_size': 1, 'total_batch_size': 1}, says='batch_size')
    yield Case('a part of the total', options={'train_dataloader.batch_size': 48}, says='total_batch_size')
    yield Case('two accumulations', options={'optim_wrapper.accumulative_counts': 7}, says='accumulative_counts')
    yield Case('validation drops', options={'val_dataloader.drop_last': True}, says='drop_last')
    yield Case('test drops', 'test', options={'test_dataloader.r.drop_last': True}, says='drop_last')
    yield Case(
        'stop by nothing',
        options={'default_hooks.stop': dict(type='EarlyStoppingHook', monitor='accuracy/top_1')},
        says='top_1',
    )
    yield Case('best of nothing', options={'default_hooks.checkpoint.save_best': 'accuracy/top_1'}, says='top_1')
    yield Case('no validation', options={'val_dataloader': None}, says='val_dataloader')
    yield Case('no shift of this name', 'test', options={'test_cfg.shifts': ['sktech']}, says='sktech')
    yield Case('other id set', 'test', options={'test_cfg.id_set': 'photo'}, says='photo')
    yield Case('another type of head', options={'model.head.class_weights.type': 'file'}, says='left over')
    yield Case('empty probe', options={'model.head.class_weights': dict(type='linear_probe')}, says='dataset')
    yield Case('lists for numbers of a list', options={'optim_wrapper.optimizer.betas': [[0.9], 0.9]}, says='betas')
    yield Case('half a gate', 'test', options={'model.knn_gate.level': 0.1}, says='dataset')
    yield Case('gate with a level', 'test', [TRAIN, '--knn-gate'], options={'model.knn_gate.level': 0.1}, must_run=True)
    yield Case('half a test', options={'test_cfg': None}, says='test_cfg')


def parts() -> Iterator[Case]:
    """Values that only the class of a part knows to be wrong, or that stand where no class is named."""
    pipeline = 'train_dataloader.dataset.pipeline'
    for wrong in (
        [],
        [[]],
        [{}],
        [dict(type='Resize')],
        [dict(type='RandomFlip', prob=2.0)],
        [dict(type='RandomResizedCrop', scale=0)],
        [dict(type='ColorJitter', brightness='x')],
        [dict(type='PackInputs'), 5],
        [dict(type='RandomErasing', mode='x')],
        [dict(type='Corrupt', corruption='fogg', severity=1), dict(type='PackInputs')],
        [dict(type='Corrupt', corruption='fog'), dict(type='PackInputs')],
        [dict(type='Corrupt', corruption='fog', severity=0), dict(type='PackInputs')],
        [dict(type='Corrupt', corruption=['fog'], severity=1), dict(type='PackInputs')],
        [dict(type='Corrupt', corruption='fog', severity=NAN), dict(type='PackInputs')],
        [dict(type='Corrupt', corruption='fog', severity=1, seed=-1), dict(type='PackInputs')],
    ):
        yield value(pipeline, wrong)
    corrupted = dict(_delete_=True, type='CorruptedImageNetDataset', data_root='{}', pipeline=[dict(type='PackInputs')])
    for wrong in (dict(corruptions=[]), dict(corruptions='fog'), dict(severities=[6]), dict(severities=[2, 2])):
        yield Case(
            f'corrupted {wrong}',
            'test',
            options={'test_dataloader.r.dataset': {**corrupted, **wrong}},
            says=next(iter(wrong)),
        )
    for key, wrong, says in (
        ('train_dataloader.collate_fn', None, 'collate_fn'),
        ('train_dataloader.prefetch_factor', 2, 'train_dataloader'),
        ('train_dataloader.multiprocessing_context', 'nope', 'train_dataloader'),
        ('train_dataloader.worker_init_fn', 'x', 'worker_init_fn'),
        ('test_dataloader.r.prefetch_factor', 2, 'test_dataloader.r'),
        ('param_scheduler', [dict(type='CosineAnnealingLR', T_max=5, begin=5, end=2)], 'param_scheduler[0]'),
        ('param_scheduler', [dict(type='MultiStepLR', milestones=['a'])], 'milestones'),
        ('param_scheduler', [dict(type='StepLR', step_size=2, end=0)], 'param_scheduler[0]'),
        ('train_cfg.by_epoch', True, 'by_epoch'),
        ('train_cfg.by_epoch', 'x', 'by_epoch'),
        ('optim_wrapper.optimizer.params', [], 'params'),
        ('optim_wrapper.optimizer', dict(type='SGD', lr=1, nesterov=True), 'optim_wrapper'),
        ('optim_wrapper.paramwise_cfg', dict(custom_keys=dict(backbone=dict(lr_mul=1))), 'lr_mult'),
        ('default_hooks.checkpoint.priority', 'NOPE', 'VERY_LOW'),
        ('default_hooks.logger.priority', -5, 'priority'),
        ('default_hooks.checkpoint.save_best', [], 'save_best'),
        ('default_hooks.checkpoint.rule', ['greater', 'less'], 'rule'),
        ('custom_hooks', [dict(type='EMAHook', ema_type='No')], 'ema_type'),
        ('load_from', '', 'load_from'),
        ('cache_dir', '', 'cache_dir'),
        ('env_cfg.cudnn_benchmark', 'x', 'cudnn_benchmark'),
        ('env_cfg.mp_cfg', 5, 'mp_cfg'),
        ('env_cfg.tpyo', 1, 'tpyo'),
        ('env_cfg.mp_cfg.mp_start_method', 'nope', 'mp_start_method'),
        ('env_cfg.resource_limit', 'x', 'resource_limit'),
        ('env_cfg.mp_cfg.tpyo', 1, 'tpyo'),
        ('log_processor.num_digits', -2, 'num_digits'),
        ('log_processor.by_epoch', 'x', 'by_epoch'),
        ('launcher', 'nope', 'launcher'),
        ('visualizer.vis_backends', 5, 'vis_backends'),
        ('visualizer.name', 5, 'name'),
        ('default_scope', 'nope', 'default_scope'),
        ('default_scope', 'a b', 'default_scope'),
        ('compile', 'x', 'compile'),
        ('sync_bn', 'x', 'sync_bn'),
        ('activation_checkpointing', 5, 'activation_checkpointing'),
        ('efficient_conv_bn_eval', 5, 'efficient_conv_bn_eval'),
        ('model.head.num_classes', 10**9, 'num_classes'),
    ):
        yield Case(f'part {key}={wrong!r}', options={key: wrong}, says=says)
    for template in (
        'x',
        '../x_{}.pth',
        '/tmp/x_{}.pth',
        '{}{}.pth',
        '{x}.pth',
        '{0}.pth',
        'best.pth{}',
        'epoch_{}.txt',
        '{:100000}.pth',
    ):
        yield value('default_hooks.checkpoint.filename_tmpl', template)


def groups() -> Iterator[Case]:
    """Sets with groups, and classes made of other classes' rows."""
    rows, images = 'model.head.class_weights.rows', 'train_dataloader.dataset'
    for key, wrong, says in (
        (rows, 'waterbrids', 'waterbirds'),
        (rows, [], 'rows'),
        (rows, [[0], []], 'rows'),
        (rows, [[0], [1], [2]], 'num_classes'),
        (rows, [[0], [-1]], 'rows'),
        (rows, [[0], [True]], 'rows'),
        (rows, [[0], [0.5]], 'rows'),
        (rows, 5, 'rows'),
        (f'{images}.fraction', 1.5, 'fraction'),
        (f'{images}.fraction', NAN, 'fraction'),
        (f'{images}.fraction', True, 'fraction'),
        (f'{images}.per_group', 0, 'per_group'),
        (f'{images}.per_group', '5', 'per_group'),
        (f'{images}.per_clas', 5, 'per_class'),
        (f'{images}.split', 'tarin', 'train'),
        (f'{images}.split', 0, 'split'),
        ('data_root', '/no/such/folder', '/no/such/folder'),
        ('default_hooks.checkpoint.save_best', 'accuracy/worst_grop', 'accuracy/worst_group'),
        ('val_evaluator.type', 'GroupAcuracy', 'GroupAccuracy'),
    ):
        yield Case(f'birds {key}={wrong!r}', arguments=[BIRDS], options={key: wrong}, says=says)
    table = 'filename,y,split\na.png,0,train\nb.png,1,train\n'
    for name, content, more, says in (
        ('no column', table, dict(label_column='label'), "no column 'label'"),
        ('no split', table, dict(split='val'), 'split=val'),
        ('empty', '', {}, 'its columns are none'),
        ('binary', bytes(range(256)), {}, 'UTF-8'),
        ('no file', None, {}, 'metadata.csv'),
        ('short row', 'filename,y\na.png\n', {}, 'line 2'),
        ('groups of text', table, dict(group_columns='y'), 'group_columns'),
    ):
        dataset = dict(
            type='GroupCSVDataset',
            data_root='{{ fileDirname }}',
            pipeline=[dict(type='PackInputs')],
            **more,
            _delete_=True,
        )
        config = f'_base_ = {TRAIN!r}\ntrain_dataloader = dict(dataset={dataset!r})\n'
        files = {'mine.py': config} if content is None else {'mine.py': config, 'metadata.csv': content}
        yield Case(f'csv {name}', arguments=['{}/mine.py'], files=files, says=says)


def files() -> Iterator[Case]:
    """Files that are no configs."""
    deep = 'a = ' + '[' * 300 + ']' * 300
    bomb = 'a0: &a0 [x, x]\n' + ''.join(f'a{i}: &a{i} [' + ', '.join([f'*a{i - 1}'] * 9) + ']\n' for i in range(1, 10))
    for name, content, says in (
        ('syntax.py', 'a = 1\nmodel = dict(\n', 'syntax.py, line 2'),
        ('name.py', 'a = 1\nb = c\n', 'name.py, line 2'),
        ('bom.py', '\ufeffa = 1\n', 'byte order mark'),
        ('latin.py', 'a = "é"'.encode('latin-1'), 'UTF-8'),
        ('binary.py', bytes(range(256)), 'binary.py'),
        ('null.py', 'a = 1\0', 'null.py'),
        ('tabs.py', 'if True:\n\ta = 1\n        b = 2\n', 'line 3'),
        ('missing_base.py', "_base_ = './gone.py'\n", 'gone.py'),
        ('number_base.py', '_base_ = 5\n', 'number_base.py'),
        ('self.py', "_base_ = './self.py'\n", 'inherits from itself'),
        ('folder_base.py', "_base_ = '.'\n", 'folder_base.py'),
        ('raise.py', 'a = 1\n\nraise ValueError("no")\n', 'raise.py, line 3'),
        ('import.py', 'import no_such_module\n', 'no_such_module'),
        ('zero.py', 'a = 1 / 0\n', 'zero.py, line 1'),
        ('deep.py', deep, 'deep.py'),
        ('empty.py', '', 'model'),
        ('text.txt', 'model = 1', '.py'),
        ('reserved.py', 'filename = 1\n', 'reserved'),
        ('base_key.py', f"_base_ = '{TRAIN}'\nmodel = dict(head=_base_.nothing)\n", 'nothing'),
        ('twice.py', f"_base_ = ['{TRAIN}', '{TRAIN}']\n", 'twice.py'),
        ('list.json', '[1, 2]', 'mapping'),
        ('broken.json', '{"a": ', 'broken.json'),
        ('list.yaml', '- 1\n- 2\n', 'mapping'),
        ('broken.yaml', 'a: [1\n', 'broken.yaml'),
        ('code.yaml', 'a: !!python/object/apply:os.getcwd []', 'tag'),
        ('bomb.yaml', bomb, 'aliases'),
        ('loop.yaml', 'a: &a [*a]\n', 'alias'),
        ('deep.yaml', 'a: ' + '[' * 5000, 'deep'),
        ('deep.json', '[' * 100_000, 'deep.json'),
        ('keys.yaml', '1: 2\n', 'keys.yaml'),
        ('large.json', ' ' * (11 * 2**20), 'larger'),
        ('large.yaml', 'a: [' + '1, ' * 500_000 + ']', '1 MB'),
        ('nan.json', '{"model": NaN}', 'NaN'),
    ):
        yield Case(f'config {name}', arguments=['{}/' + name], files={name: content}, says=says)
    yield Case(
        'config loop of two',
        arguments=['{}/a.py'],
        files={'a.py': "_base_ = './b.py'\n", 'b.py': "_base_ = './a.py'\n"},
        says='itself',
    )
    yield Case(
        'config broken base',
        arguments=['{}/a.py'],
        files={'a.py': "_base_ = './b.py'\n", 'b.py': 'x = 1\ny = (\n'},
        says='b.py, line 2',
    )
    yield Case(
        'config with code in its base',
        arguments=['{}/a.py'],
        files={'a.py': "_base_ = './b.yaml'\n", 'b.yaml': 'a: !!python/object/apply:os.system ["touch ran"]'},
        says='tag',
    )
    yield Case('config folder', arguments=['{}'], says='folder')
    yield Case('config gone', arguments=['{}/gone.py'], says='gone.py')
    yield Case('config pipe', arguments=['{}/pipe.py'], files={'pipe.py': os.mkfifo}, says='pipe.py')
    yield Case(
        'config unknown package',
        arguments=['{}/a.py'],
        files={'a.py': "_base_ = 'mmnothing::a.py'\n"},
        says='mmnothing',
    )
    yield Case(
        'config of ours that is not there',
        arguments=['{}/a.py'],
        files={'a.py': "_base_ = 'mmcfmask::gone.py'\n"},
        says='gone.py',
    )


def commands() -> Iterator[Case]:
    """Command lines."""
    for option in ('lr', '=1', 'model.head.=1', '.a=1', 'model=dict(type=X)', "model={'a': b}", 'model=[[1]', 'a b'):
        yield Case(f'option {option}', arguments=[TRAIN, '--cfg-options', option])
    for arguments in (
        ['--seed', '-1'],
        ['--seed', 'x'],
        ['--seed', str(2**40)],
        ['--seed', '1.5'],
        ['--launcher', 'horovod'],
        ['--nonsense'],
        ['--resume', '{}/gone.pth'],
        ['--work-dir', '/proc/mine'],
        ['--work-dir', '{}/file/below'],
    ):
        yield Case(f'train {" ".join(arguments)}', arguments=[TRAIN, *arguments], files={'file': 'x'})
    for launcher in ('pytorch', 'slurm', 'mpi'):
        yield Case(f'launcher {launcher}', arguments=[TRAIN, '--launcher', launcher], says=f'launcher {launcher}')
    yield Case(
        'launcher of words',
        arguments=[TRAIN, '--launcher', 'pytorch'],
        says='RANK',
        environment=dict(RANK='first', WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT='1'),
    )
    for arguments in (
        ['--alphas', '0:1:1e-9'],
        ['--alphas', 'x'],
        ['--alphas', '2'],
        ['--alphas', 'nan'],
        ['--alphas', '1:0:0.1'],
        ['--alphas', '0:1:0'],
        ['--save', '-1'],
        ['--alphas', '0:inf:1'],
    ):
        yield Case(f'wise_ft {" ".join(arguments)}', 'wise-ft', [TRAIN, '{}/x.pth', *arguments], {'x.pth': 'x'})
    for arguments in (
        ['{}/gone.pth'],
        ['{}/text.pth'],
        ['--shifts', 'sktech'],
        ['--relevance-crop', '5'],
        ['--out', '{}'],
        ['--relevance-crop', 'nan'],
    ):
        yield Case(f'test {" ".join(arguments)}', 'test', [TRAIN, *arguments], {'text.pth': 'no checkpoint'})
    for arguments, says in (
        (['--value', 'nan'], '--value'),
        (['--share', '0.3', '1.5'], '--share'),
        (['--share'], '--share'),
        (['--maps', 'outlier-mean'], 'outliers-mean'),
        (['--sets', 'tset'], 'test'),
        (['--curves', '0'], '--curves'),
        (['--curves', '--out', 'curves.jpg'], '.png'),
        (['--num', '-3'], '--num'),
        (['{}/text.pth'], 'text.pth'),
    ):
        name = f'mask-quality {" ".join(arguments)}'
        yield Case(name, 'mask-quality', [TRAIN, *arguments], {'text.pth': 'no checkpoint'}, says=says)


def studies() -> Iterator[Case]:
    """Study files."""
    entry = f'methods:\n  FT: {ROOT}/configs/shapes/ft.py\n'
    contents = {
        'empty': '',
        'list': '- 1\n',
        'broken': 'methods: [\n',
        'no methods': 'out: x\n',
        'methods null': 'methods:\n',
        'unknown': 'method: 1\n',
        'methods list': 'methods: [FT]\n',
        'methods text': 'methods: FT\n',
        'number': 'methods:\n  1: x.py\n',
        'entry': 'methods:\n  FT: 5\n',
        'gone': 'methods:\n  FT: gone.py\n',
        'entry null': 'methods:\n  FT:\n',
        'up': 'methods:\n  "..": x.py\n',
        'slashes': 'methods:\n  "/": x.py\n',
        'long': f'methods:\n  {"x" * 300}: x.py\n',
        'code': 'methods: !!python/object/apply:os.getcwd []\n',
        'bom': '\ufeff' + entry,
        'two sources': 'methods:\n  A: {config: x.py, soup: B}\n',
        'unknown source': 'methods:\n  A: {soup: B}\n',
        'itself': 'methods:\n  A: {soup: A}\n',
        'alpha': 'methods:\n  A: {wise_ft: B, alpha: 2}\n',
        'alpha text': 'methods:\n  A: {wise_ft: B, alpha: x}\n',
        'twice': entry + entry,
        'sweep': 'methods:\n  A: {config: x.py, sweep: {a.b: 5}}\n',
        'sweep list': 'methods:\n  A: {config: x.py, sweep: [1]}\n',
        'sweep bomb': 'methods:\n  A: {config: x.py, sweep: {'
        + ', '.join(f'a.b{i}: [1, 2, 3, 4]' for i in range(12))
        + '}}\n',
        'greedy': 'methods:\n  A: {soup: B, greedy: 5}\n',
        'options': 'methods:\n  A: {evaluate: B, options: [--nonsense]}\n',
        'renamed': 'methods:\n  A: {retest: B, options: [--knn-gate]}\n',
        'grid': 'methods:\n  A: {config: x.py, grid: 5}\n',
        'grid of a derived method': 'methods:\n  A: {soup: B, grid: {a.b: [1]}}\n  B: {config: x.py}\n',
        'tuned as nothing': 'methods:\n  A: {config: x.py, tuned_as: B}\n',
        'tuned as in a circle': 'methods:\n  A: {config: x.py, tuned_as: B}\n  B: {config: x.py, tuned_as: A}\n',
        'tuned as a list': 'methods:\n  A: {config: x.py, tuned_as: [A]}\n',
        'config number': 'methods:\n  A: {config: 5}\n',
        'option keys': 'methods:\n  A: {config: x.py, cfg_options: {1: 2}}\n',
    }
    for name, content in contents.items():
        yield Case(f'study {name}', 'study', ['{}/my.yaml', '--list'], {'my.yaml': content}, says='my.yaml')
    for line in (
        'seeds: 5',
        'seeds: []',
        'seeds: [a]',
        'seeds: [0, 0]',
        'seeds: [-1]',
        'seeds: [1.5]',
        'seeds: [true]',
        'amp: "yes"',
        'amp: 5',
        'keep: none',
        'keep: 5',
        'out: 5',
        'out: ""',
        'pictures: "no"',
        'pictures: [1]',
        'cfg_options: 5',
        'cfg_options: [a]',
        'tune: 5',
        'tune: {gird: {a.b: [1]}}',
        'tune: {grid: 5}',
        'tune: {grid: {optim_wrapper.optimizer.lr: 1.0e-4}}',
        'tune: {grid: {optim_wrapper.optimizer.lr: []}}',
        'tune: {grid: {optim_wrapper.optimizer.lr: [1e-4]}}',
        'tune: {grid: {optim_wrapper.optimizer.lr: [.nan]}}',
        'tune: {grid: {optim_wrapper.optimizer.lr: [-1.0]}}',
        'tune: {grid: {optim_wrapper.optimizer.lr: [0.1, 0.1]}}',
        'tune: {grid: {optim_wrapper.optimizer.tpyo: [1]}}',
        'tune: {grid: {1: [1]}}',
        'tune: {grid: {optim_wrapper.optimizer.lr: [0.1]}, seed: -1}',
        'tune: {grid: {optim_wrapper.optimizer.lr: [0.1]}, seed: true}',
        'tune: {grid: {optim_wrapper.optimizer.lr: [0.1]}, cfg_options: {train_cfg.max_epochs: many}}',
        'datasets: 5',
        'datasets: [a]',
        'datasets: {x: 5}',
        'datasets: {x: {config: 5}}',
        'datasets: {x: {}}',
        'datasets: {../x: "{config}"}',
        'datasets: {..: "{config}"}',
        'datasets: {x: {config: "{config}", cfg_options: 5}}',
        'datasets: {1: "{config}"}',
        'datasets: {x: {config: "{config}", more: 1}}',
        'cfg_options: {optim_wrapper.optimizer.lr: 1e-4}',
        'cfg_options: {optim_wrapper.optimizer.lr: -1}',
        'cfg_options: {nothing: 1}',
        'cfg_options: {model.head.tpyo: 1}',
        'cfg_options: {train_cfg.max_epochs: many}',
        'typo: 1',
    ):
        yield Case(f'study {line}', 'study', ['{}/my.yaml', '--list'], {'my.yaml': entry + line + '\n'}, says='my.yaml')
    yield Case('study null seeds', 'study', ['{}/my.yaml', '--list'], {'my.yaml': entry + 'seeds:\n'}, may_run=True)
    for name, content in {'list': '[1]', 'broken': '{', 'methods': '{"methods": 5}', 'deep': '[' * 100_000}.items():
        yield Case(f'study json {name}', 'study', ['{}/my.json', '--list'], {'my.json': content}, says='my.json')
    yield Case('study python', 'study', ['{}/my.py', '--list'], {'my.py': 'a = 1\nmethods = nothing\n'}, says='line 2')
    yield Case('study text', 'study', ['{}/my.txt', '--list'], {'my.txt': entry}, says='.yaml')
    yield Case('study pipe', 'study', ['{}/my.yaml', '--list'], {'my.yaml': os.mkfifo}, says='my.yaml')
    for arguments in (
        ['--jobs', '0'],
        ['--seeds', '-1'],
        ['--seeds', 'a'],
        ['--only', 'nothing'],
        ['--datasets', 'nothing'],
        ['--cfg-options', 'lr'],
        ['--cfg-options', 'nothing=1'],
        ['--cfg-options', 'optim_wrapper.optimizer.lr=x'],
        ['--export', ''],
    ):
        yield Case(
            f'study with {" ".join(arguments)}', 'study', ['{}/my.yaml', '--list', *arguments], {'my.yaml': entry}
        )
