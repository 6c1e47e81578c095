from .cache import CachedDataset
from .class_folders import MissingSetError
from .coarse_sets import CounterAnimalDataset, GeirhosDataset, ImageNet9Dataset, ImageNetDDataset
from .corruptions import Corrupt, CorruptedImageNetDataset
from .domains import DomainDataset
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
from .relabelled import ImageNetHardDataset, ImageNetRealDataset, ImageNetXDataset
from .shapes import ShapesDataset
from .transforms import CropBorder, LoadImageFromFile, LoadResizedImage, ResizeCenterCrop
from .wilds import CelebADataset, WILDSDataset
from .zero_shot import ZeroShotDataset

__all__ = [
    'CachedDataset',
    'CelebADataset',
    'Corrupt',
    'CorruptedImageNetDataset',
    'CounterAnimalDataset',
    'CropBorder',
    'DomainDataset',
    'FolderDataset',
    'FolderShiftDataset',
    'GeirhosDataset',
    'GroupCSVDataset',
    'ImageNet9Dataset',
    'ImageNetADataset',
    'ImageNetCDataset',
    'ImageNetDDataset',
    'ImageNetDataset',
    'ImageNetHardDataset',
    'ImageNetRDataset',
    'ImageNetRealDataset',
    'ImageNetSketchDataset',
    'ImageNetV2Dataset',
    'ImageNetXDataset',
    'LoadImageFromFile',
    'LoadResizedImage',
    'MissingSetError',
    'ObjectNetDataset',
    'ObjectsOnWhiteDataset',
    'PACSDataset',
    'ResizeCenterCrop',
    'ShapesDataset',
    'WILDSDataset',
    'WaterbirdsDataset',
    'ZeroShotDataset',
]
