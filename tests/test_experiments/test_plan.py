"""The runs that a study stands for: their seeds, folders, configs and keys. Nothing runs."""

import re
from pathlib import Path

import pytest

from mmcfmask import __version__
from mmcfmask.errors import ConfigError, MissingFileError
from mmcfmask.experiments.fingerprint import read_version
from mmcfmask.experiments.spec import StudySpec, read_study
from mmcfmask.experiments.study import Study

ROOT = Path(__file__).parents[2]
SHAPES = str(ROOT / 'configs' / 'shapes' / '{config}.py')
STUDIES = sorted(path.name for path in (ROOT / 'studies').glob('*.yaml'))


def test_runs_seeds_and_folders(study, labels, tmp_path):
    methods = {
        'FT + WiSE-FT': dict(wise_ft='FT'),
        'Zero-shot': 'zeroshot',
        'FT': 'ft',
        'FD': dict(config='fd', seeds=[7]),
        'Soup': dict(soup='FT', greedy=True),
        'FT + k-NN gate': dict(evaluate='FT', options=['--knn-gate'], seeds=[1]),
    }
    planned = study(methods, seeds=[0, 1])
    assert labels(planned) == [
        'shapes FT + WiSE-FT (seed 0)',
        'shapes FT + WiSE-FT (seed 1)',
        'shapes Zero-shot',
        'shapes FT (seed 0)',
        'shapes FT (seed 1)',
        'shapes FD (seed 7)',
        'shapes Soup',
        'shapes FT + k-NN gate (seed 1)',
    ]
    runs = {job.label: job for job in planned.jobs}
    assert runs['shapes FT (seed 1)'].product == tmp_path / 'shapes' / 'ft' / 'seed1' / 'metrics.json'
    assert runs['shapes Zero-shot'].product == tmp_path / 'shapes' / 'zero-shot' / 'run' / 'metrics.json'
    assert runs['shapes Soup'].product == tmp_path / 'shapes' / 'soup' / 'run' / 'metrics.json'
    assert runs['shapes FT + WiSE-FT (seed 1)'].depends_on == [runs['shapes FT (seed 1)']]
    assert runs['shapes FT + k-NN gate (seed 1)'].depends_on == [runs['shapes FT (seed 1)']]
    assert runs['shapes Soup'].depends_on == [runs['shapes FT (seed 0)'], runs['shapes FT (seed 1)']]
    assert len({job.key for job in planned.jobs}) == len(planned.jobs)


def test_an_average_is_over_a_set_of_every_config(study):
    assert study({'FT': 'ft'}, average_of='sketch').spec.average_of == 'sketch'
    with pytest.raises(
        ConfigError, match=r"average_of='photos' is no test set of FT on shapes: test, v2, r, sketch, a"
    ):
        study({'FT': 'ft'}, average_of='photos')
    with pytest.raises(ConfigError, match='average_of is a mean over data sets, and per_class makes several of each'):
        study({'FT': 'ft'}, average_of='sketch', per_class=[1, 4])


def test_options_reach_the_configs_and_the_keys(study):
    methods = {
        'Zero-shot': 'zeroshot',
        'FT': dict(config='ft', cfg_options={'optim_wrapper.optimizer.lr': 1.0, 'train_cfg.max_epochs': 9}),
    }
    options = {'train_dataloader.dataset.size': 64, 'optim_wrapper.optimizer.lr': 2.0}
    first = study(methods, overrides=options)
    cfg = first.plan.configs['shapes', 'FT']
    # The command line takes precedence over the method, the method over the config; a zero-shot config trains nothing.
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs, cfg.train_dataloader.dataset.size) == (2.0, 9, 64)
    assert not first.plan.configs['shapes', 'Zero-shot'].get('train_dataloader')
    keys = [job.key for job in first.jobs]
    assert [job.key for job in study(methods, overrides=options).jobs] == keys
    for change in ({}, dict(overrides=options, amp=True), dict(overrides=options, seeds=[1])):
        assert study(methods, **change).jobs[1].key != keys[1]
    cfg = study(methods, cfg_options={**options, 'train_cfg.max_epochs': 8}).plan.configs['shapes', 'FT']
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs, cfg.train_dataloader.dataset.size) == (1.0, 9, 64)
    assert {read_version(key) for key in keys} == {__version__} and read_version('0' * 64) == '0.1.0'


def test_the_key_of_a_derived_run_changes_with_its_source(study):
    keys = []
    for epochs, alpha in ((1, 0.5), (2, 0.5), (1, 0.6)):
        entry = dict(config='ft', cfg_options={'train_cfg.max_epochs': epochs})
        keys.append(study({'FT': entry, 'W': dict(wise_ft='FT', alpha=alpha)}).jobs[1].key)
    assert len(set(keys)) == 3


@pytest.mark.parametrize('key', ['model.backbone.pretrained', 'load_from'])
def test_the_key_changes_with_the_content_of_weights(study, tmp_path, key):
    weights = tmp_path / 'weights.pt'

    def make_key(content):
        weights.write_text(content)
        return study({'FT': 'ft'}, overrides={key: str(weights)}).jobs[0].key

    assert make_key('aaaa') != make_key('bbbb') and make_key('aaaa') == make_key('aaaa')


def test_data_sets_have_their_own_configs_options_and_methods(study, labels):
    datasets = {'one': dict(config=SHAPES, cfg_options={'train_cfg.max_epochs': 3}), 'two': SHAPES}
    methods = {'FT': 'ft', 'LP': dict(config='lp', datasets=['two']), 'W': dict(wise_ft='LP')}
    planned = study(methods, datasets=datasets)
    assert labels(planned) == ['one FT (seed 0)', 'two FT (seed 0)', 'two LP (seed 0)', 'two W (seed 0)']
    assert [planned.plan.configs[name, 'FT'].train_cfg.max_epochs for name in ('one', 'two')] == [3, 10]


def test_a_selection_brings_what_it_uses(study, labels):
    methods = {'FT': 'ft', 'FD': 'fd', 'LP': 'lp', 'FT + WiSE-FT': dict(wise_ft='FT')}
    assert labels(study(methods, only=['* WiSE-FT', 'LP'])) == [
        'shapes FT (seed 0)',
        'shapes LP (seed 0)',
        'shapes FT + WiSE-FT (seed 0)',
    ]


def test_derived_methods_have_the_seeds_of_their_source(study, labels):
    methods = {
        'FT': dict(config='ft', seeds=[1, 2]),
        'W': dict(wise_ft='FT'),
        'S': dict(soup='FT'),
        'G': dict(evaluate='FT', options=['--knn-gate'], seeds=[2]),
    }
    planned = study(methods)
    assert labels(planned) == [
        'shapes FT (seed 1)',
        'shapes FT (seed 2)',
        'shapes W (seed 1)',
        'shapes W (seed 2)',
        'shapes S',
        'shapes G (seed 2)',
    ]
    assert [job.label for job in planned.jobs[4].depends_on] == ['shapes FT (seed 1)', 'shapes FT (seed 2)']
    methods['G']['seeds'] = [0]
    with pytest.raises(ConfigError, match=r"methods\['G'\]: 'FT' has no run with seed 0, only with 1, 2"):
        study(methods)


def test_an_untrained_method_can_be_evaluated_again(study, labels):
    methods = {'ZS': 'zeroshot', 'ZS cropped': dict(evaluate='ZS', options=['--relevance-crop'])}
    planned = study(methods, seeds=[0, 1])
    assert labels(planned) == ['shapes ZS', 'shapes ZS cropped']
    command = next(planned.jobs[1].commands(planned.jobs[1]))
    assert '--relevance-crop' in command.arguments and not any('.pth' in part for part in command.arguments)


def test_a_picture_of_every_variant(study, tmp_path):
    methods = {
        'FT': 'ft',
        'FD': 'fd',
        'CAR-FT': 'carft',
        'CFMask': 'cfmask',
        'Same': dict(config='cfmask', cfg_options={'train_cfg.max_epochs': 1}),
        '{mask}': dict(config='cfmask', sweep={'model.data_preprocessor.mask': ['random', 'context']}),
    }
    pictures = [job.product.name for job in study(methods, pictures=True).jobs if job.product.suffix == '.png']
    assert pictures == [f'counterfactuals_{variant}_single.png' for variant in ('object', 'random', 'context')]
    one = study({'CFMask': 'cfmask', 'W': dict(wise_ft='CFMask')}, pictures=True)
    assert one.jobs[-1].product == tmp_path / 'shapes' / 'counterfactuals.png'


@pytest.mark.parametrize(
    'methods, message',
    [
        ({'FT': dict(config='ft', cfg_options={'optim_wraper.optimizer.lr': 1.0})}, "Did you mean 'optim_wrapper'"),
        (
            {'FT': dict(config='ft', cfg_options={'train_cfg.max_epochs.x': 1})},
            r"'FT'\]: .*ft.py with \{'train_cfg.max_",
        ),
        (
            {'ZS': 'zeroshot', 'W': dict(wise_ft='ZS')},
            r"methods\['W'\] needs a trained method, but 'ZS' is not trained",
        ),
        (
            {'F T': 'ft', 'f_t': 'fd'},
            'two methods would write to .*f_t/seed0: give them names that differ in more than',
        ),
        ({'FT': 'fine_tuning'}, r"methods\['FT'\]: there is no config '.*fine_tuning.py'"),
        ({'FT': dict(config='ft', datasets=['pets'])}, r"methods\['FT'\].datasets: 'pets' is none of shapes"),
    ],
)
def test_mistakes_are_found_before_anything_runs(study, methods, message):
    with pytest.raises((ConfigError, MissingFileError), match=message):
        study(methods)


def test_a_greedy_soup_needs_the_same_held_out_images(study, monkeypatch):
    """With a hold-out of its own, a seed would choose by images that another one has trained on."""
    monkeypatch.chdir(ROOT)
    methods = {'FT': 'configs/pacs/ft_vitb16.py', 'FT soup': dict(soup='FT', greedy=True)}
    run = {
        f'{key}.dataset.holdout.seed': 'run'
        for key in ('train_dataloader', 'val_dataloader', 'model.head.class_weights')
    }
    with pytest.raises(ConfigError, match=r"methods\['FT soup'\]: a greedy soup needs the same held-out .*, but 'FT' "):
        study(methods, datasets={}, seeds=[0, 1], cfg_options=run)
    for seeds, options in (([0, 1], {}), ([0], run)):
        planned = study(methods, datasets={}, seeds=seeds, cfg_options=options)
        assert len(planned.plan.runs['', 'FT soup']) == 1
    methods['FT soup']['greedy'] = False
    study(methods, datasets={}, seeds=[0, 1], cfg_options=run)


@pytest.mark.parametrize('name', STUDIES)
def test_shipped_studies(name, tmp_path, monkeypatch):
    """They can be read, every config in them exists, and every option fits its config."""
    monkeypatch.chdir(ROOT)
    spec = read_study(f'studies/{name}').model_copy(update=dict(out=str(tmp_path)))
    assert len(Study(spec).jobs) > 5
    assert f'tools/study.py studies/{name}' in (ROOT / 'studies' / name).read_text()


def test_the_example_of_the_docs(labels, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    docs = (ROOT / 'docs' / 'studies.md').read_text()
    text, tuned = [text for text in re.findall(r'```yaml\n(.*?)```', docs, re.DOTALL) if 'methods:' in text]
    (tmp_path / 'my.yaml').write_text(text)
    planned = Study(read_study(str(tmp_path / 'my.yaml')).model_copy(update=dict(out=str(tmp_path))))
    assert {label for label in labels(planned) if label.startswith('pacs CFMask')} == {
        f'pacs CFMask{mask} (seed {seed})' for mask in ('', ' context', ' random') for seed in range(3 + 2 * (not mask))
    }
    assert {'shapes FT + WiSE-FT (seed 2)', 'pacs FT soup'} < set(labels(planned))
    assert 'pacs L2-SP (seed 0)' not in labels(planned)
    assert planned.plan.configs['pacs', 'FT'].train_dataloader.dataset.data_root == '/data/pacs'
    documented = set(re.findall(r'^\| `(\w+)` \|', docs, re.MULTILINE))
    assert documented == set(StudySpec.model_fields) - {'methods'}
    (tmp_path / 'my.yaml').write_text(f'{tuned}\ndatasets: {{shapes: "configs/shapes/{{config}}.py"}}\n')
    planned = Study(read_study(str(tmp_path / 'my.yaml')).model_copy(update=dict(out=str(tmp_path))))
    trials = {job.label.partition(' (')[0] for job in planned.jobs if job.serves}
    assert trials == {'shapes FT', 'shapes LP', 'shapes CFMask object'}
