"""What a study file says, and what it stands for; no run."""

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mmcfmask.errors import ConfigError
from mmcfmask.experiments.jobs import JobError
from mmcfmask.experiments.study import (
    STUDY_KEYS,
    Study,
    checkpoint_to_test,
    expand_method,
    load_study,
    run_or_exit,
    sign_metrics,
    slug,
)
from mmcfmask.reporting.runs import FORMAT

ROOT = Path(__file__).parents[2]
SHAPES = {'shapes': str(ROOT / 'configs' / 'shapes' / '{config}.py')}
STUDIES = sorted(path.name for path in (ROOT / 'studies').glob('*.yaml'))


def study(tmp_path, methods, **kwargs):
    return Study(methods, str(tmp_path), **{'datasets': SHAPES, 'pictures': False, **kwargs})


def labels(study):
    return [job.label for job in study.jobs]


def test_sweep_gives_every_combination():
    key = 'model.data_preprocessor.'
    entry = dict(
        config='cfmask',
        cfg_options={'a.b': 1},
        sweep={key + 'mask': ['object', 'random'], key + 'fill': ['none', 'multi']},
    )
    methods = expand_method('KD {mask}', entry)
    assert [method.name for method in methods] == [
        'KD object fill=none',
        'KD object fill=multi',
        'KD random fill=none',
        'KD random fill=multi',
    ]
    assert (
        methods[1].cfg_options == {'a.b': 1, key + 'mask': 'object', key + 'fill': 'multi'}
        and methods[1].config == 'cfmask'
    )
    # Fields of the entry can be swept as well.
    methods = expand_method('{wise_ft} + WiSE-FT', dict(sweep={'wise_ft': ['FT', 'FD'], 'alpha': [0.25]}))
    assert [(method.name, method.wise_ft, method.alpha) for method in methods] == [
        ('FT + WiSE-FT alpha=0.25', 'FT', 0.25),
        ('FD + WiSE-FT alpha=0.25', 'FD', 0.25),
    ]


def test_runs_seeds_and_folders(tmp_path):
    methods = {
        'FT + WiSE-FT': dict(wise_ft='FT'),
        'Zero-shot': 'zeroshot',
        'FT': 'ft',
        'FD': dict(config='fd', seeds=[7]),
        'Soup': dict(soup='FT', greedy=True),
        'FT + gate': dict(retest='FT', options=['--knn-gate'], seeds=[1]),
    }
    planned = study(tmp_path, methods, seeds=[0, 1])
    assert labels(planned) == [
        'shapes FT + WiSE-FT (seed 0)',
        'shapes FT + WiSE-FT (seed 1)',
        'shapes Zero-shot',
        'shapes FT (seed 0)',
        'shapes FT (seed 1)',
        'shapes FD (seed 7)',
        'shapes Soup',
        'shapes FT + gate (seed 1)',
    ]
    runs = {job.label: job for job in planned.jobs}
    assert runs['shapes FT (seed 1)'].product == tmp_path / 'shapes' / 'ft' / 'seed1' / 'metrics.json'
    assert runs['shapes Zero-shot'].product == tmp_path / 'shapes' / 'zero-shot' / 'start' / 'metrics.json'
    assert runs['shapes FT + WiSE-FT (seed 1)'].needs == [runs['shapes FT (seed 1)']]
    assert runs['shapes FT + gate (seed 1)'].needs == [runs['shapes FT (seed 1)']]
    assert runs['shapes Soup'].needs == [runs['shapes FT (seed 0)'], runs['shapes FT (seed 1)']]
    assert len({job.key for job in planned.jobs}) == len(planned.jobs)


def test_options_reach_the_configs_and_decide_what_is_kept(tmp_path):
    methods = {
        'Zero-shot': 'zeroshot',
        'FT': dict(config='ft', cfg_options={'optim_wrapper.optimizer.lr': 1.0, 'train_cfg.max_epochs': 9}),
    }
    options = {'train_dataloader.dataset.size': 64, 'optim_wrapper.optimizer.lr': 2.0}
    first = study(tmp_path, methods, overrides=options)
    cfg = first.configs['shapes', 'FT']
    # The command line is over the method, the method over the config; a config without training has no use for them.
    assert (
        cfg.optim_wrapper.optimizer.lr == 2.0
        and cfg.train_cfg.max_epochs == 9
        and cfg.train_dataloader.dataset.size == 64
    )
    assert first.configs['shapes', 'Zero-shot'].train_dataloader is None
    keys = {job.label: job.key for job in first.jobs}
    for change in ({}, dict(overrides=options, amp=True)):
        assert {job.label: job.key for job in study(tmp_path, methods, **change).jobs}['shapes FT (seed 0)'] != keys[
            'shapes FT (seed 0)'
        ]
    assert {job.label: job.key for job in study(tmp_path, methods, overrides=options).jobs} == keys
    cfg = study(tmp_path, methods, cfg_options={**options, 'train_cfg.max_epochs': 8}).configs['shapes', 'FT']
    assert (
        cfg.optim_wrapper.optimizer.lr == 1.0
        and cfg.train_cfg.max_epochs == 9
        and cfg.train_dataloader.dataset.size == 64
    )
    # What is derived changes with its source.
    derived = [
        study(
            tmp_path, {'FT': dict(config='ft', cfg_options={'train_cfg.max_epochs': epochs}), 'W': dict(wise_ft='FT')}
        )
        .jobs[1]
        .key
        for epochs in (1, 2)
    ]
    assert derived[0] != derived[1]


def test_results_are_not_kept_when_a_file_changes(tmp_path):
    weights = tmp_path / 'weights.pt'

    def key(content):
        weights.write_text(content)
        return study(tmp_path, {'FT': 'ft'}, overrides={'model.backbone.pretrained': str(weights)}).jobs[0].key

    assert key('aaaa') != key('bbbb') and key('aaaa') == key('aaaa')
    start = study(tmp_path, {'FT': 'ft'}, overrides={'load_from': str(weights)}).jobs[0].key
    weights.write_text('cccc')
    assert study(tmp_path, {'FT': 'ft'}, overrides={'load_from': str(weights)}).jobs[0].key != start


def test_data_sets_have_their_configs_options_and_methods(tmp_path):
    sets = {'one': dict(config=SHAPES['shapes'], cfg_options={'train_cfg.max_epochs': 3}), 'two': SHAPES['shapes']}
    planned = study(
        tmp_path, {'FT': 'ft', 'LP': dict(config='lp', datasets=['two']), 'W': dict(wise_ft='LP')}, datasets=sets
    )
    assert labels(planned) == ['one FT (seed 0)', 'two FT (seed 0)', 'two LP (seed 0)', 'two W (seed 0)']
    assert (
        planned.configs['one', 'FT'].train_cfg.max_epochs == 3
        and planned.configs['two', 'FT'].train_cfg.max_epochs == 10
    )


def test_only(tmp_path):
    methods = {'FT': 'ft', 'FD': 'fd', 'LP': 'lp', 'FT + WiSE-FT': dict(wise_ft='FT')}
    assert labels(study(tmp_path, methods, only=['* WiSE-FT', 'LP'])) == [
        'shapes FT (seed 0)',
        'shapes LP (seed 0)',
        'shapes FT + WiSE-FT (seed 0)',
    ]
    with pytest.raises(ValueError, match=r"no method is named 'FA\*': there are FT, FD"):
        study(tmp_path, methods, only=['FA*'])


def test_derived_methods_follow_the_seeds_of_their_source(tmp_path):
    methods = {
        'FT': dict(config='ft', seeds=[1, 2]),
        'W': dict(wise_ft='FT'),
        'S': dict(soup='FT'),
        'G': dict(retest='FT', options=['--knn-gate'], seeds=[2]),
    }
    planned = study(tmp_path, methods, seeds=[0])
    assert labels(planned) == [
        'shapes FT (seed 1)',
        'shapes FT (seed 2)',
        'shapes W (seed 1)',
        'shapes W (seed 2)',
        'shapes S',
        'shapes G (seed 2)',
    ]
    assert [need.label for need in planned.jobs[4].needs] == ['shapes FT (seed 1)', 'shapes FT (seed 2)']
    with pytest.raises(ValueError, match=r"methods\['G'\]: 'FT' has no run with seed 0, but with 1, 2"):
        study(tmp_path, {**methods, 'G': dict(retest='FT', options=['--knn-gate'], seeds=[0])})


def test_what_is_not_trained_can_be_tested_again(tmp_path):
    planned = study(
        tmp_path, {'ZS': 'zeroshot', 'ZS twice': dict(retest='ZS', options=['--relevance-crop'])}, seeds=[0, 1]
    )
    assert labels(planned) == ['shapes ZS', 'shapes ZS twice']
    step = next(iter(planned.jobs[1].steps(planned.jobs[1])))
    assert '--relevance-crop' in step.command and not any(str(part).endswith('.pth') for part in step.command)


def test_a_partial_run_keeps_the_results_of_the_rest(tmp_path):
    methods = {'FT': 'ft', 'FD': 'fd'}
    for job in study(tmp_path, methods).jobs:
        job.product.parent.mkdir(parents=True)
        write(job.product, test=90.0, v2=80.0)
        job.key_file.write_text(job.key)
    partial = study(tmp_path, methods, only=['FD'])
    assert labels(partial) == ['shapes FD (seed 0)']
    partial.gather(Console(quiet=True))
    assert '| FT |' in (tmp_path / 'shapes' / 'results.md').read_text()


def test_sets_that_differ_between_seeds(tmp_path, capsys):
    planned = study(tmp_path, {'FT': 'ft'}, seeds=[0, 1])
    for job, sets in zip(planned.jobs, (dict(test=90.0, v2=80.0), dict(test=90.0, v2=80.0, a=10.0))):
        job.product.parent.mkdir(parents=True)
        write(job.product, **sets)
        job.key_file.write_text(job.key)
    planned.gather(Console(width=200))
    shown = capsys.readouterr().out
    assert 'shapes: no table:' in shown and 'Delete the metrics.json without it' in shown


def test_a_picture_of_every_variant(tmp_path):
    key = 'model.data_preprocessor.'
    methods = {
        'FT': 'ft',
        'FD': 'fd',
        'CAR-FT': 'carft',
        'CFMask': 'cfmask',
        'Same': dict(config='cfmask', cfg_options={'train_cfg.max_epochs': 1}),
        '{mask}': dict(config='cfmask', cfg_options={key + 'value': None}, sweep={key + 'mask': ['random', 'context']}),
    }
    planned = study(tmp_path, methods, pictures=True)
    pictures = [job.product.name for job in planned.jobs if job.product.suffix == '.png']
    assert pictures == [
        'counterfactuals_object_single.png',
        'counterfactuals_random_single.png',
        'counterfactuals_context_single.png',
    ]
    one = study(tmp_path, {'CFMask': 'cfmask'}, pictures=True)
    assert one.jobs[-1].product == tmp_path / 'shapes' / 'counterfactuals.png'


@pytest.mark.parametrize(
    'methods, message',
    [
        (
            {'FT': dict(config='ft', cfg_option={})},
            r"methods\['FT'\] has no 'cfg_option': it can have config, cfg_options",
        ),
        ({1: 'ft'}, r'methods\[1\]: the name must be a text'),
        ({'W': dict(wise_ft=['FT'])}, "wise_ft must be a text, but is \\['FT'\\]"),
        ({'FT': dict(config=3)}, 'config must be a text, but is 3'),
        ({'FT': dict(config='ft', seeds=[0, 1.5])}, r'seeds must be whole numbers from 0 on, but are \[0, 1.5\]'),
        ({'FT': {}}, 'must have one of config, wise_ft, retest, soup, but has none'),
        ({'FT': dict(config='ft', soup='FT')}, 'but has config and soup'),
        ({'FT': dict(config='ft', sweep={'a.b': 3})}, 'sweep takes a list of values'),
        ({'FT': dict(config='ft', sweep={'alpa': [3]})}, "sweep has no 'alpa'"),
        ({'FT': ['ft']}, r"methods\['FT'\] must be a config or a mapping, but is \['ft'\]"),
        ({'FT': dict(config='ft', seeds=3)}, r'seeds must be a list, such as \[0, 1, 2\], but is 3'),
        (
            {'FT': 'ft', 'W': dict(wise_ft='FT', alpha=5)},
            r'alpha must lie between 0 \(pre-trained\) and 1 \(fine-tuned\), but is 5',
        ),
        (
            {'FT': dict(config='ft', cfg_options={'optim_wrapper.optimizer.lr': '1.5e3'})},
            "is the text '1.5e3', .*: write 1.5e\\+3",
        ),
        (
            {'FT': dict(config='ft', cfg_options={'optim_wrapper.optimizer.lr': '1e-4'})},
            "is the text '1e-4', not a number, .*: write 1.0e-4",
        ),
        (
            {'FT': dict(config='ft', cfg_options={'optim_wraper.optimizer.lr': 1.0})},
            "has no 'optim_wraper', .* Did you mean 'optim_wrapper'",
        ),
        ({'W': dict(wise_ft='FT')}, "derived from 'FT', which is none of W"),
        ({'FT': 'ft', 'W': dict(wise_ft='FT'), 'S': dict(soup='W')}, "derived from 'W', which is derived itself"),
        ({'FT': 'ft', 'W': dict(wise_ft='FT', cfg_options={'a.b': 1})}, 'whose cfg_options count'),
        (
            {'FT': 'ft', 'G': dict(retest='FT')},
            r'retest needs options, a list of --knn-gate and --relevance-crop, .* but they are \[\]',
        ),
        ({'FT': 'ft', 'G': dict(retest='FT', options=['--look'])}, r"but they are \['--look'\]"),
        ({'FT': 'ft', 'G': dict(wise_ft='FT', options=['--knn-gate'])}, 'nothing else can have them'),
        (
            {'FT': 'ft', 'G': dict(retest='FT', options='--knn-gate')},
            r"options must be a list, such as .*, but is '--knn-gate'",
        ),
        ({'ZS': 'zeroshot', 'W': dict(wise_ft='ZS')}, "'ZS' is not trained, so nothing can be derived"),
        ({'FT': 'ft', 'F{x}': dict(config='fd', sweep={'a.x': ['T']})}, "two methods are named 'FT'"),
        ({'F T': 'ft', 'f_t': 'fd'}, 'two methods would write to .*f_t/seed0'),
        ({'FT': 'fine_tuning'}, r"methods\['FT'\]: there is no config '.*fine_tuning.py'"),
        ({'FT': dict(config='ft', datasets=['pets'])}, "'pets' is none of shapes"),
        (
            {'FT': dict(config='ft', cfg_options={'train_cfg.max_epochs.x': 1})},
            r"'FT'\]: .*ft.py with \{'train_cfg.max_epochs.x': 1\}",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, methods, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        study(tmp_path, methods)


def test_mistakes_in_a_study_file(tmp_path):
    path = tmp_path / 'my.yaml'
    with pytest.raises(FileNotFoundError, match='there is no study'):
        load_study(str(path))
    for text, message in [
        ('method: {FT: ft}', "my.yaml has no 'method': it can have out, seeds"),
        ('seeds: [0]', 'has no methods'),
        ('methods: {FT: [', 'my.yaml: while parsing'),
        ('methods:\n  FT: ft\n  FT: fd', "my.yaml: 'FT' stands twice in it, at lines 2 and 3"),
        ('methods: [ft]', r"methods must be a mapping, .*: value, but is \['ft'\]"),
        ('methods: {FT: ft}\nseeds: 3', r'my.yaml: seeds must be a list, such as \[0, 1, 2\], but is 3'),
        ('methods: {FT: ft}\nseeds: [a]', r"seeds must be whole numbers from 0 on, but are \['a'\]"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_study(str(path))
    path.write_text('methods: {FT: ft}\nseeds: [0, 1]\n')
    assert load_study(str(path)) == dict(out='work_dirs/my', methods=dict(FT='ft'), seeds=[0, 1])
    with pytest.raises(ValueError, match=r"datasets\['x'\] needs config"):
        Study({'FT': 'ft'}, str(tmp_path), datasets={'x': dict(cfg_options={})})
    with pytest.raises(ValueError, match="keep='none'"):
        Study({'FT': 'ft'}, str(tmp_path), keep='none')


@pytest.mark.parametrize('name', STUDIES)
def test_shipped_studies(name, tmp_path, monkeypatch):
    """They load, every config in them exists, and every option fits its config."""
    monkeypatch.chdir(ROOT)
    planned = Study(**{**load_study(f'studies/{name}'), 'out': str(tmp_path)})
    assert len(planned.jobs) > 5
    assert f'tools/study.py studies/{name}' in (ROOT / 'studies' / name).read_text()


def test_example_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (text,) = re.findall(r'```yaml\n(.*?)```', (ROOT / 'docs' / 'studies.md').read_text(), re.DOTALL)
    (tmp_path / 'my.yaml').write_text(text)
    planned = Study(**{**load_study(str(tmp_path / 'my.yaml')), 'out': str(tmp_path)})
    assert {job.label for job in planned.jobs if job.label.startswith('pacs CFMask')} == {
        f'pacs CFMask{mask} (seed {seed})' for mask in ('', ' context', ' random') for seed in range(3 + 2 * (not mask))
    }
    assert {'shapes FT + WiSE-FT (seed 2)', 'pacs FT soup'} < set(
        labels(planned)
    ) and 'pacs L2-SP (seed 0)' not in labels(planned)
    assert planned.configs['pacs', 'FT'].train_dataloader.dataset.data_root == '/data/pacs'
    documented = set(re.findall(r'^\| `(\w+)` \|', (ROOT / 'docs' / 'studies.md').read_text(), re.MULTILINE))
    assert documented == set(STUDY_KEYS) - {'methods'}


def write(path, notes=(), **sets):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            dict(
                format=FORMAT,
                method='x',
                seed=None,
                id_set='test',
                sets={name: dict(metrics=dict(top1=value), notes=list(notes)) for name, value in sets.items()},
            )
        )
    )


def test_gathers_what_is_finished(tmp_path):
    planned = study(tmp_path, {'FT': 'ft', 'LP': 'lp', 'FD': 'fd'}, seeds=[0, 1])
    for job in planned.jobs[:3]:
        job.begin()
        write(job.product, test=90.0, a=10.0 + len(job.label) % 2, sketch=30.0)
    console = Console(record=True, width=60)
    planned.gather(console)
    results = json.loads((tmp_path / 'shapes' / 'results.json').read_text())
    assert (
        list(results['methods']) == ['FT', 'LP']
        and results['methods']['FT']['seeds'] == 2
        and results['methods']['LP']['seeds'] == 1
    )
    assert results['shifts'] == ['sketch', 'a'] and results['id_set'] == 'test'  # in the order of the config
    assert 'OOD avg' in console.export_text() and (tmp_path / 'shapes' / 'id_ood.png').stat().st_size > 1000
    assert '| FT | 2 |' in (tmp_path / 'shapes' / 'results.md').read_text()


def test_incomplete_sets_are_marked(tmp_path):
    planned = study(tmp_path, {'LP': 'lp'}, seeds=[0])
    planned.jobs[0].begin()
    write(planned.jobs[0].product, notes=['incomplete: 9 of 10 images'], test=90.0, sketch=30.0)
    console = Console(record=True, width=80)
    planned.gather(console)
    assert (
        'incomplete: 9 of 10 images' in (tmp_path / 'shapes' / 'results.md').read_text()
        and 'incomplete' in console.export_text()
    )


def test_metrics_are_signed(tmp_path):
    write(tmp_path / 'a.json', test=90.0, sketch=30.0)
    sign_metrics(tmp_path / 'a.json', tmp_path / 'metrics.json', 'FT', 3)
    signed = json.loads((tmp_path / 'metrics.json').read_text())
    assert (signed['method'], signed['seed']) == ('FT', 3) and not (tmp_path / 'a.json').exists()


def test_checkpoint_that_is_tested(tmp_path):
    with pytest.raises(JobError, match='there is no checkpoint in'):
        checkpoint_to_test(tmp_path)
    (tmp_path / 'epoch_10.pth').touch()
    assert checkpoint_to_test(tmp_path).name == 'epoch_10.pth'
    (tmp_path / 'best_accuracy_top1_epoch_9.pth').touch()
    assert checkpoint_to_test(tmp_path).name == 'best_accuracy_top1_epoch_9.pth'


@pytest.mark.parametrize(
    'methods, datasets',
    [({'..': 'ft'}, None), ({'/': 'ft'}, None), ({'FT': 'ft'}, '../../x'), ({'FT': 'ft'}, '..'), ({'FT': 'ft'}, 'a/b')],
)
def test_names_that_lead_out_of_the_folder(tmp_path, methods, datasets):
    with pytest.raises(ValueError, match=r'(methods|datasets).*must be a plain name'):
        study(tmp_path, methods, datasets={datasets: SHAPES['shapes']} if datasets else SHAPES)


def test_second_study_in_one_folder_is_refused(tmp_path):
    """By name of the first; a lock of this process would be no obstacle, so another one holds it."""
    code = f"from mmcfmask.files import locked\nwith locked({str(tmp_path)!r}, 'a study'):\n    print(flush=True)\n    input()"
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        with pytest.raises(
            SystemExit, match=rf'is in use by a study \(process {first.pid} on .*: wait until that has ended, or choose'
        ):
            run_or_exit(study(tmp_path, {'FT': 'ft'}), Console(quiet=True))
        first.communicate(b'\n')


def test_names():
    assert [slug(name) for name in ('Zero-shot', 'CFMask object/single', 'FT + WiSE-FT', 'w=0.5')] == [
        'zero-shot',
        'cfmask_object_single',
        'ft_+_wise-ft',
        'w=0.5',
    ]


@pytest.mark.parametrize('amp, fast', [(True, True), (True, False), (False, False)])
def test_slow_bfloat16_is_named_once(tmp_path, monkeypatch, amp, fast):
    monkeypatch.setattr('mmcfmask.experiments.study.multiplies_bfloat16', lambda device: fast)
    console = Console(file=StringIO(), record=True, width=160)
    monkeypatch.setattr(Study, 'run', lambda *args: [])
    run_or_exit(study(tmp_path, {'FT': 'ft'}, amp=amp), console)
    assert console.export_text().count('--amp: this CPU has no instructions for bfloat16') == (amp and not fast)


def test_greedy_soup_needs_one_hold_out(tmp_path):
    """What one seed chooses by, with a hold-out of its own, another has trained on."""
    methods = {'FT': 'configs/pacs/ft_vitb16.py', 'FT soup': dict(soup='FT', greedy=True)}
    run = {
        f'{key}.dataset.holdout.seed': 'run'
        for key in ('train_dataloader', 'val_dataloader', 'model.head.class_weights')
    }
    with pytest.raises(
        ConfigError, match=r"methods\['FT soup'\]: each seed of 'FT' has held-out images of its own .*soup needs one"
    ):
        Study(methods, str(tmp_path), seeds=[0, 1], cfg_options=run)
    for seeds, options in (([0, 1], {}), ([0], run)):
        assert len(Study(methods, str(tmp_path), seeds=seeds, cfg_options=options).runs['', 'FT soup']) == 1
    methods['FT soup']['greedy'] = False
    Study(methods, str(tmp_path), seeds=[0, 1], cfg_options=run)
