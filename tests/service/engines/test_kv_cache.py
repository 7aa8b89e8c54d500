"""Caches of keys and values in the host's memory and on the device, which is the CPU here: both hold the same."""

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from service.engines.host import EngineHost
from service.engines.kv_cache import DeviceGathers, DeviceKvCache, HostKvCache, KvCache

R, H, L, K = 6, 2, 4, 3
NAMES = ["key_0", "value_0"]


def opened(place: str, dtype: type) -> KvCache:
    """Allocate an empty cache."""
    shape, element = (R, H, L, K), np.dtype(dtype)
    if place == "host":
        return HostKvCache(NAMES, shape, element)
    return DeviceKvCache(NAMES, shape, element, "cpu", DeviceGathers(len(NAMES), element, EngineHost()), zeros=True)


def parts(place: str, dtype: type, tokens: int) -> list[NDArray[np.generic]]:
    """Return random outputs of an encoder, [5, H, S, K], in the memory that the cache reads them from."""
    arrays = [np.random.default_rng(seed).random((5, H, tokens, K)).astype(dtype) for seed in (1, 2)]
    return arrays if place == "host" else [onnxruntime.OrtValue.ortvalue_from_numpy(each, "cpu") for each in arrays]


def content(cache: KvCache, rows: int) -> list[NDArray[np.generic]]:
    """Return the first rows of each tensor."""
    cache.flush(rows)
    if isinstance(cache, HostKvCache):
        return [array[:rows].copy() for array in cache._arrays]
    return [value.numpy()[:rows].copy() for value in cache._memories[cache.active]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("place", ["host", "device"])
def test_rows_are_written_moved_and_kept(place: str, dtype: type) -> None:
    """Rows of the encoder, moves that overlap, and other numbers of places leave every row what it should be."""
    cache, encoded = opened(place, dtype), [each[:, :, :L] for each in parts("host", dtype, L)]
    assert not any(array.any() for array in content(cache, R))
    cache.write_rows(0, parts(place, dtype, L), [4, 0, 2])
    for array, source in zip(content(cache, 3), encoded, strict=True):
        np.testing.assert_array_equal(array, source[[4, 0, 2]])
    cache.copy_rows([0, 1], [1, 0], L)  # they swap
    cache.copy_rows(slice(2, 3), slice(0, 1), L)
    cache.write_rows(3, parts(place, dtype, L), [3])
    for array, source in zip(content(cache, 4), encoded, strict=True):
        np.testing.assert_array_equal(array, source[[0, 4, 0, 3]])
    cache.copy_rows([0], [3], L)
    cache.resize(L + 2, 4)
    assert cache.length == L + 2
    cache.resize(2, 4)
    assert cache.length == 2
    for array, source in zip(content(cache, 4), encoded, strict=True):
        np.testing.assert_array_equal(array, source[[3, 4, 0, 3], :, :2])


@pytest.mark.parametrize("tokens", [2, L, 7])
@pytest.mark.parametrize("place", ["host", "device"])
def test_parts_of_other_lengths_are_cut_or_padded_with_finite_numbers(place: str, tokens: int) -> None:
    """An encoder's output may have fewer or more places than the cache."""
    cache, kept = opened(place, np.float32), min(tokens, L)
    cache.write_rows(0, parts(place, np.float32, tokens), [1, 3])
    for array, source in zip(content(cache, 2), parts("host", np.float32, tokens), strict=True):
        np.testing.assert_array_equal(array[:, :, :kept], source[[1, 3], :, :kept])
        assert np.isfinite(array).all()


@pytest.mark.parametrize("place", ["host", "device"])
def test_a_cache_without_places_or_rows_in_use_can_be_resized(place: str) -> None:
    """Running batches begin without any source token, and grow when the first sentence joins."""
    cache = opened(place, np.float32)
    cache.resize(0, 0)
    cache.flush(0)
    cache.resize(L, 0)
    cache.write_rows(0, parts(place, np.float32, L), [2])
    for array, source in zip(content(cache, 1), parts("host", np.float32, L), strict=True):
        np.testing.assert_array_equal(array, source[[2]])
