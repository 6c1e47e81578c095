"""A job: when it is finished, and how far it is."""

from mmcfmask.experiments.jobs import Job, read_progress, read_tail


def test_a_product_counts_only_under_its_key(tmp_path):
    def make(key):
        return Job('a', tmp_path / 'product', tmp_path / 'key', key, iter, leftovers=('*.state',))

    old, new = make('old'), make('new')
    assert old.read_key() is None and not old.is_started()
    old.prepare()
    (tmp_path / 'half.state').touch()
    old.prepare()  # the same settings: what was made so far stays
    assert old.is_started() and not old.is_finished() and (tmp_path / 'half.state').exists()
    old.product.touch()
    assert old.is_finished() and not new.is_finished() and new.read_key() == 'old'
    new.prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['key'] and new.is_started()


def test_progress_is_read_from_the_output_of_tools():
    lines = [
        'INFO - Epoch(train)  [1][ 5/10]  lr: 1e-5  loss: 0.5123  loss_cls: 0.5',
        'INFO - Epoch(train)  [2][10/10]  loss: 0.25',
        'INFO - something else',
        'INFO - sketch: 30 images',
        'INFO - Epoch(test) [3/4]  eta: 0',
    ]
    seen, now = [], (0.0, '')
    for line in lines:
        now = read_progress(line, 2, *now)
        seen.append(now)
    assert seen == [
        (0.25, ' loss 0.5123'),
        (1.0, ' loss 0.25'),
        (1.0, ' loss 0.25'),
        (1.0, ' sketch'),
        (0.75, ' sketch'),
    ]


def test_the_end_of_a_log_is_shown(tmp_path):
    (tmp_path / 'log').write_bytes(b'first\n' + b'x\n' * 24 + b'\xff last')
    assert read_tail(tmp_path / 'log').startswith('x\n') and read_tail(tmp_path / 'log').endswith('\ufffd last')
