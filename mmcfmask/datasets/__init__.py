from .cache import CachedDataset
from .class_folders import MissingSetError
from .corruptions import Corrupt, CorruptedImageNetDataset
from .folder import FolderDataset, PACSDataset
from .folder_shift import FolderShiftDataset
from .groups import GroupCSVDataset, WaterbirdsDataset
from .imagenet_shifts import (
    ImageNetADataset,
    ImageNetCDataset,
    ImageNetDataset,
    ImageNetRDataset,
    ImageNetSketchDataset,
    ImageNetV2Dataset,
    ObjectNetDataset,
)
from .objects import ObjectsOnWhiteDataset
from .shapes import ShapesDataset
from .transforms import CropBorder, LoadImageFromFile, LoadResizedImage, ResizeCenterCrop

__all__ = [
    'CachedDataset',
    'Corrupt',
    'CorruptedImageNetDataset',
    'CropBorder',
    'FolderDataset',
    'FolderShiftDataset',
    'GroupCSVDataset',
    'ImageNetADataset',
    'ImageNetCDataset',
    'ImageNetDataset',
    'ImageNetRDataset',
    'ImageNetSketchDataset',
    'ImageNetV2Dataset',
    'LoadImageFromFile',
    'LoadResizedImage',
    'MissingSetError',
    'ObjectNetDataset',
    'ObjectsOnWhiteDataset',
    'PACSDataset',
    'ResizeCenterCrop',
    'ShapesDataset',
    'WaterbirdsDataset',
]
