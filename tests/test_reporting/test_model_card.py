from mmcfmask.reporting.model_card import model_card


def test_a_card_with_everything():
    text = model_card(
        'a | b',
        'It is a model.',
        '\nimport x\n',
        {'Mean': '0.5'},
        training={'model.losses': '[a|b]'},
        results={'test': {'top1': 91.234, 'nll': 0.0123}, 'groups': {'top1': 80.0, 'worst_group': 3.0}},
        tested='Measured by a test.',
        provenance={'Seed': '7'},
        classes=['cat', 'dog'],
        library='open_clip',
        task='image-classification',
    )
    header, body = text.split('---\n\n', 1)
    assert header == (
        '---\nlibrary_name: open_clip\npipeline_tag: image-classification\ntags: [clip, mmcfmask, robust-fine-tuning]\n'
    )
    assert body.startswith('# a | b\n\nIt is a model.\n\n## Use\n') and '```python\nimport x\n```' in body
    assert '| Set | top1 | nll | worst_group |' in body
    assert '| test | 91.23 | 0.0123 | – |' in body and '| groups | 80.00 | – | 3.00 |' in body
    assert r'| model.losses | [a\|b] |' in body and '0: cat, 1: dog\n' in body
    assert 'Measured by a test.\n\n## Provenance\n' in body and '| Seed | 7 |' in body
    assert '\n\n\n' not in text and text.endswith('dog\n')


def test_a_card_without_results():
    text = model_card('a', 'It is a model.', 'import x', {'Mean': '0.5'})
    assert 'library_name' not in text and not any(
        f'## {part}' in text for part in ('Training', 'Results', 'Provenance', 'Classes')
    )
