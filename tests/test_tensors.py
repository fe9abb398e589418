import pytest
import torch

from vidiff.tensors import fast_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(("machine", "extension", "mkldnn", "fast"), [
    ("x86_64", True, True, True),
    ("AMD64", False, True, False),  # AVX-512 without the extension: oneDNN computes it in float32, slowly
    ("x86_64", None, True, False),  # a torch that does not know
    ("aarch64", False, True, True),
    ("aarch64", False, False, False),
])  # fmt: skip
def test_bfloat16_is_fast_on_a_cpu_that_has_instructions_for_it(monkeypatch, machine, extension, mkldnn, fast):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    if extension is not None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: extension, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: mkldnn)
    assert fast_bfloat16(CPU) is fast
    assert fast_bfloat16(torch.device("cuda"))
