# The quickstart, and an environment for everything else. On a GPU (NVIDIA container toolkit):
#
#   docker build -t music_ssl_fairseq .
#   docker run --rm --gpus all --shm-size=8g -v "$PWD/quickstart:/out" music_ssl_fairseq
#   docker run --rm -it --gpus all --shm-size=8g -v "$PWD:/work" -w /work music_ssl_fairseq bash
#
# Without a GPU leave out --gpus all. The wheels of torch bring CUDA; the driver is the host's.
FROM python:3.12-slim-bookworm

# A compiler for the kernels, which Triton builds on the GPU's host.
RUN apt-get update \
  && apt-get install -y --no-install-recommends gcc libc6-dev \
  && rm -rf /var/lib/apt/lists/*

ENV MUSIC_SSL_VENV=/opt/venv QUICKSTART_DIR=/out PIP_NO_CACHE_DIR=1
WORKDIR /opt/music_ssl_fairseq
COPY . .
RUN bash -c 'source examples/environment.sh && environment quickstart'

ENV PATH=/opt/venv/bin:$PATH
CMD ["bash", "examples/quickstart.sh"]
