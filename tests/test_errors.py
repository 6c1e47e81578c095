import pytest
from torch.utils.data import DataLoader, Dataset

from mmcfmask.errors import StorageError, one_line


class Broken(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise StorageError('data/cat/1.png cannot be read as an image (the file is empty). Repair or remove it')


@pytest.mark.parametrize('workers', [0, 1])
def test_one_line_also_of_a_data_worker(workers):
    with pytest.raises(SystemExit) as ended, one_line('config.py'):
        list(DataLoader(Broken(), num_workers=workers))
    assert (
        str(ended.value)
        == 'config.py: data/cat/1.png cannot be read as an image (the file is empty). Repair or remove it'
    )
