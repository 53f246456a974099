"""The checksum of the wire and the ledger is zlib's, whatever computes it."""

import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolog.checksum import crc32


@given(st.binary(max_size=5_000), st.integers(0, 64))
def test_it_is_that_of_zlib(data, skipped):
    """Of any bytes, wherever in memory they begin, and in one piece or two."""
    assert crc32(data[skipped:], crc32(data[:skipped])) == zlib.crc32(data)
    assert crc32(memoryview(data)[skipped:]) == zlib.crc32(data[skipped:])
    assert crc32(bytearray(data)) == zlib.crc32(data)


def test_it_is_that_of_zlib_in_large_pieces():
    """A group of many records is megabytes."""
    data = bytes(range(256)) * 20_000
    assert crc32(data) == zlib.crc32(data)


@pytest.mark.parametrize("is_there", [True, False])
def test_zlib_computes_it_where_isal_is_not(is_there):
    """There are processors that it is not built for."""
    if is_there:
        pytest.importorskip("isal", reason="isal is not built for this processor")
    hide = "" if is_there else "import sys; sys.modules['isal'] = None\n"
    program = f"{hide}import zlib; from aiolog.checksum import crc32; print(crc32(b'aiolog'), crc32 is zlib.crc32)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(zlib.crc32(b"aiolog")), str(not is_there)]
