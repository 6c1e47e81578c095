from .folder import FolderDataset, ImageNetDataset, PACSDataset
from .shapes import ShapesDataset

__all__ = ['FolderDataset', 'ImageNetDataset', 'PACSDataset', 'ShapesDataset']
