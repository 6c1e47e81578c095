# The package on the CPU:  docker build -t mmcfmask .
# With CUDA, from PyPI:    docker build -t mmcfmask --build-arg TORCH_INDEX= .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# Where pip also looks for torch, whose "+cpu" it prefers; empty: on PyPI alone, whose wheels bring CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1

# What OpenCV needs of the system.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && apt-get clean

WORKDIR /opt/mmcfmask
COPY requirements/constraints.txt requirements/
RUN pip install -c requirements/constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch torchvision
COPY . .
RUN pip install -c requirements/constraints.txt '.[lite]'

# Data, configs and results are those of the folder that is mounted here.
WORKDIR /work
ENTRYPOINT ["mmcfmask"]
CMD ["--help"]
