"""Compressed bodies of HTTP requests: what is read, what is refused, and how far a body is decompressed."""

import gzip
import json
import zlib
from collections.abc import Iterator

import httpx
import pytest

from service.errors import InvalidRequest, TooLarge
from service.process.memory_budget import ByteBudget, Reservation
from service.transport.content_encoding import MAX_MEMBERS, STEP_BYTES, content_encoding, decompressed
from tests.conftest import Server

LIMIT = 10**6
DATA = b"".join(b"%d," % number for number in range(50_000))
BODY = json.dumps({"inputs": ["A wonderful film."]}).encode()


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=server.http, timeout=30) as client:
        yield client


def raw_deflate(data: bytes) -> bytes:
    """Compress without zlib's header, as some clients do."""
    return zlib.compress(data)[2:-4]


@pytest.mark.parametrize("data", [b"", b"x", DATA])
@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)]
)
def test_a_body_is_decompressed(encoding: str, compress: type[bytes], data: bytes) -> None:
    """Every encoding gives back what was compressed."""
    assert decompressed(compress(data), encoding, LIMIT, lambda _: None) == data


def test_a_gzip_body_may_have_several_members() -> None:
    """Their number is bounded, because an empty one takes no memory but time."""
    both = gzip.compress(DATA) + gzip.compress(b"end")
    assert decompressed(both, "gzip", LIMIT, lambda _: None) == DATA + b"end"
    with pytest.raises(InvalidRequest, match=f"more than {MAX_MEMBERS} gzip members"):
        decompressed(gzip.compress(b"") * (MAX_MEMBERS + 1), "gzip", LIMIT, lambda _: None)


@pytest.mark.parametrize(
    ("encoding", "body", "text"),
    [
        ("gzip", b"", "ends before the end of its gzip data"),
        ("deflate", b"", "ends before the end of its deflate data"),
        ("gzip", gzip.compress(DATA)[:-1], "ends before the end of its gzip data"),
        ("deflate", zlib.compress(DATA)[:-1], "ends before the end of its deflate data"),
        ("gzip", zlib.compress(DATA), "the body is not gzip, as header content-encoding says"),
        ("gzip", BODY, "the body is not gzip"),
        ("gzip", gzip.compress(DATA) + b"more", "the body is not gzip"),
        ("deflate", zlib.compress(DATA) + b"more", "further bytes behind the end of its deflate data"),
        ("gzip", gzip.compress(DATA)[:-8] + bytes(8), "the body is not gzip.*incorrect data check"),
    ],
)
def test_a_damaged_body_is_refused(encoding: str, body: bytes, text: str) -> None:
    """The error says in which way it is damaged."""
    with pytest.raises(InvalidRequest, match=text):
        decompressed(body, encoding, LIMIT, lambda _: None)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_bomb_is_refused_without_being_expanded(compress: type[bytes]) -> None:
    """No step reserves memory far beyond the limit; a body of exactly the limit is read."""
    reserved: list[int] = []
    encoding = "gzip" if compress is gzip.compress else "deflate"
    with pytest.raises(TooLarge, match=f"the decompressed body is larger than the limit of {LIMIT} bytes"):
        decompressed(compress(bytes(100 * LIMIT)), encoding, LIMIT, reserved.append)
    assert max(reserved) == LIMIT
    assert len(decompressed(compress(bytes(LIMIT)), encoding, LIMIT, reserved.append)) == LIMIT


def test_the_memory_budget_ends_a_decompression() -> None:
    """Memory is reserved before each step."""
    memory = Reservation(ByteBudget("request memory", 4 * STEP_BYTES))
    with pytest.raises(TooLarge, match="bytes of request memory are needed, the limit is"):
        decompressed(gzip.compress(bytes(LIMIT)), "gzip", LIMIT, memory.grow_to)
    assert memory.num_bytes == 4 * STEP_BYTES


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        ([""], None),
        (["Identity"], None),
        (["GZIP"], "gzip"),
        (["x-gzip"], "gzip"),
        ([" deflate "], "deflate"),
    ],
)
def test_names_of_encodings(given: list[str], expected: str | None) -> None:
    """Upper and lower case are the same."""
    assert content_encoding(given) == expected


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["br"], "is 'br': it is not offered; known are gzip, deflate and identity"),
        (["zstd"], "is 'zstd'"),
        (["gzip, gzip"], "is 'gzip, gzip': only one is taken"),
        (["identity", "gzip"], "is 'identity,gzip': only one is taken"),
    ],
)
def test_other_encodings_are_refused_by_name(given: list[str], text: str) -> None:
    """Several headers are one list."""
    with pytest.raises(InvalidRequest, match=text):
        content_encoding(given)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests_are_answered(encoding: str, compress: type[bytes], http: httpx.Client) -> None:
    """Short bodies and long ones give the answers of the same bodies uncompressed."""
    for text in ("short", str(list(range(9000)))):
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
        body, headers = json.dumps({"inputs": [tensor]}).encode(), {"content-encoding": encoding}
        response = http.post("/v2/models/same/infer", content=compress(body), headers=headers)
        assert response.status_code == 200, response.text
        assert response.json()["outputs"][0]["data"] == [text]
    response = http.post("/models/sentiment", content=compress(BODY), headers={"content-encoding": encoding})
    assert response.status_code == 200
    assert response.json()[0][0]["label"] == "POSITIVE"


def test_compressed_bodies_have_the_limits_of_others(http: httpx.Client) -> None:
    """A bomb is refused by the size that it would have; the server goes on."""
    bomb = gzip.compress(bytes(10**8))
    response = http.post("/models/sentiment", content=bomb, headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()["error"]) == (
        413,
        "the decompressed body is larger than the limit of 1000000 bytes",
    )
    response = http.post("/models/sentiment", content=BODY, headers={"content-encoding": "br"})
    assert (response.status_code, "'br': it is not offered" in response.json()["error"]) == (400, True)
    response = http.post("/models/sentiment", content=BODY, headers={"content-encoding": "gzip"})
    assert (response.status_code, "the body is not gzip" in response.json()["error"]) == (400, True)
    assert http.post("/models/sentiment", content=BODY, headers={"content-encoding": "identity"}).status_code == 200


def test_answers_are_never_compressed(http: httpx.Client) -> None:
    """A client that accepts compressed answers gets an uncompressed one, which it always accepts."""
    response = http.post("/models/sentiment", content=BODY, headers={"accept-encoding": "gzip, deflate"})
    assert response.status_code == 200
    assert "content-encoding" not in response.headers
