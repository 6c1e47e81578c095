import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = {}
exec((here / 'mmcfmask' / 'version.py').read_text(), version)


def requirements(name: str) -> list:
    lines = (here / 'requirements' / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def mmcv_requirement() -> list:
    """mmcv-lite is enough, but must not be unpacked over a full mmcv, which is the same package under another name.

    The metadata is looked for on disk because an isolated build does not see what is installed.
    """
    installed = any(Path(sysconfig.get_paths()['purelib']).glob('mmcv-[0-9]*.dist-info'))
    return [] if installed else ['mmcv-lite>=2.0.1,<2.4']


setup(
    name='mmcfmask',
    version=version['__version__'],
    description='Robust fine-tuning of CLIP with counterfactual masked images, an extension of MMPretrain',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='CLIP, robust fine-tuning, distribution shift, counterfactual, MMPretrain, OpenMMLab',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['mmcfmask', 'mmcfmask.*']),
    package_data={
        'mmcfmask': [
            'assets/*',
            'datasets/class_maps/*',
            'evaluation/*.csv',
            '.mim/configs/*.py',
            '.mim/configs/*/*.py',
            '.mim/tools/*',
        ]
    },
    install_requires=requirements('runtime.txt') + mmcv_requirement(),
    extras_require={'dev': requirements('dev.txt')},
    zip_safe=False,
)
