from .folder import FolderDataset, ImageNetDataset, MissingSetError, PACSDataset
from .shapes import ShapesDataset

__all__ = ['FolderDataset', 'ImageNetDataset', 'MissingSetError', 'PACSDataset', 'ShapesDataset']
