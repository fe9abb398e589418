"""Decoding: whole, in chunks and in tiles, and when memory runs out."""

import subprocess
import sys

import pytest
import torch

from tests.test_generation import networks
from vidiff.decoding import decode, decode_tiled, is_out_of_memory
from vidiff.errors import ResourceError


def test_a_decode_that_runs_out_of_memory_goes_on_in_chunks_and_tiles():
    latents = torch.randn(1, 4, 3, 4, 4)
    whole, notes = decode(networks()[0], latents), []

    def failing(*names):
        vae, _, _ = networks()
        for name in names:

            def fail(*args, **kwargs):
                raise torch.OutOfMemoryError("no memory")

            setattr(vae, name, fail)
        return vae

    chunked = decode(failing("decode"), latents, note=notes.append)
    assert torch.equal(whole, chunked) and "chunks" in notes[0]
    with pytest.raises(ResourceError, match="even in tiles"):
        decode(failing("decode", "decode_stream"), latents, note=notes.append)
    for way in ("chunks", "tiles"):  # what is planned otherwise is not tried
        planned = decode(failing("decode"), latents, way=way, note=pytest.fail)
        assert torch.allclose(planned.float(), whole.float(), atol=1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("error: out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_known_on_every_device(error, expected):
    assert is_out_of_memory(error) == expected


def test_decoding_in_chunks_holds_the_frames_once():
    code = (
        "import resource, torch\n"
        "from vidiff.decoding import decode\n"
        "from vidiff.types import LatentSpec\n"
        "class Rows:\n"
        "    latents = LatentSpec(1, 8, 1)\n"
        "    def decode_stream(self, z):\n"
        "        row = torch.linspace(-1, 1, 8 * z.shape[4])\n"
        "        return (row.expand(1, 3, 1, 8 * z.shape[3], -1) for _ in range(z.shape[2]))\n"
        "def peak(frames):\n"
        "    clips = decode(Rows(), torch.zeros(1, 1, frames, 128, 128))\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, clips.numel()\n"
        "(before, few), (after, many) = peak(9), peak(73)\n"
        "print((after - before) / (many - few))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3


def test_tiles_cover_every_pixel_once():
    vae, _, _ = networks()
    latents = torch.randn(1, 4, 2, 9, 7)
    tiled = decode_tiled(vae, latents, tile=7, overlap=5)
    assert tiled.shape == (1, 3, 5, 72, 56) and torch.isfinite(tiled).all()
    assert torch.allclose(decode_tiled(vae, latents, tile=16), vae.decode(latents), atol=1e-5)
