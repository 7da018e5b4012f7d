import pytest

from babyjax.training.devices import PEAK_FLOPS, peak_flops


def test_a_peak_is_known_or_not():
    assert peak_flops("NVIDIA H200") == PEAK_FLOPS["H200"]
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40S") is None
    assert peak_flops("cpu") is None


@pytest.mark.parametrize(
    ("kind", "peak"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12)]
)
def test_the_cards_named_h100_have_peaks_of_their_own(kind, peak):
    assert peak_flops(kind) == peak
