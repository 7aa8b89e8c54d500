"""Requests and faults that could block the server: too large, too many, too long, at each limit.

The limits are those of docs/serving.md, at the server's defaults.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from load_tests.stalls.bodies import (
    IMAGES,
    SENTIMENT,
    bytes_elements,
    image,
    json_inputs,
    keys,
    loop_grpc,
    loop_http,
    message,
    raw_message,
    refusals,
    repeated,
    text_body,
    truncated_text,
    unread,
    v2_binary,
    v2_json,
    webp,
    with_inputs,
    with_outputs,
    with_parameters,
)
from load_tests.stalls.sending import (
    HEALTH_CHECK,
    Send,
    at_once,
    grpc_connections,
    http_connections,
    in_turn,
    over_grpc,
    over_http,
)
from load_tests.stalls.stores import FLOATS, INTEGERS, TEXTS
from proto import heed_pb2, inference_pb2

MAX_BODY_BYTES, MAX_JSON_BYTES, MAX_PARSED_BYTES = 16 * 2**20, 4 * 2**20, 2**20
MAX_JSON_VALUES, MAX_JSON_LISTS, MAX_JSON_KEYS, MAX_JSON_ESCAPES = 200_000, 32_768, 65_536, 524_288
MAX_TENSORS, MAX_FIELDS, MAX_BYTES_ELEMENTS, MAX_ROWS = 1024, 8192, 131_072, 512
LISTS_A_ROW = (MAX_JSON_LISTS - MAX_ROWS) // MAX_ROWS - 1
ROOM = 4096  # below a limit, for the rest of the message
LOOP_TURNS, ENDLESS_TURNS = 6_000_000, 2**62
# WebP takes 9 bytes a pixel, and 18 MB, of a budget of 224 MiB; other images may have 50 million pixels.
LARGEST_SIDE, LARGEST_WEBP_SIDE = 7_000, 4_900

Where = Literal["usual", "full disk", "many models"]


@dataclass(frozen=True)
class Case:
    """A request or a fault.

    Attributes:
        name: what is sent or goes wrong, and the protocol (HTTP or gRPC).
        prepare: makes the bytes, before anything is measured.
        permitted: whether it is within every limit, and must be answered.
        where: the server that it is sent to.
        warm_up: sent before it, and not measured.
    """

    name: str
    prepare: Callable[[], Send]
    permitted: bool = False
    where: Where = "usual"
    warm_up: Callable[[], Send] | None = None


def cases() -> list[Case]:
    """Return every case, those of one server together."""
    return [*logs_and_loops(), *too_much(), *connections(), *largest_http(), *largest_grpc(), *elsewhere()]


def logs_and_loops() -> list[Case]:
    """Return small requests whose values make them long, and requests while the log is full."""
    return [
        Case(
            "Loop of 6,000,000 turns after 30 of one, HTTP",
            lambda: loop_http(LOOP_TURNS),
            permitted=True,
            warm_up=lambda: in_turn(loop_http(1), 30),
        ),
        Case(
            "Loop of 6,000,000 turns after 30 of one, gRPC",
            lambda: loop_grpc(LOOP_TURNS),
            permitted=True,
            warm_up=lambda: loop_grpc(1, times=30),
        ),
        Case("Loop of 2^62 turns with a deadline of 500 ms, HTTP", lambda: loop_http(ENDLESS_TURNS, 0.5)),
        Case("Loop of 2^62 turns with a deadline of 500 ms, gRPC", lambda: loop_grpc(ENDLESS_TURNS, 0.5)),
        Case("2,000 refusals while nobody reads the log, HTTP", lambda: unread(refusals("HTTP"))),
        Case("2,000 refusals while nobody reads the log, gRPC", lambda: unread(refusals("gRPC"))),
    ]


def too_much() -> list[Case]:
    """Return requests of up to 16 MB that cost more than their bytes."""
    many_lists = repeated(b"[]", 5_000_000)
    return [
        Case("850,000 empty inputs, gRPC", lambda: over_grpc(with_inputs("sentiment", 850_000))),
        Case("280,000 empty inputs, HTTP", lambda: json_inputs(280_000)),
        Case("1,500,000 outputs asked for, gRPC", lambda: over_grpc(with_outputs(1_500_000))),
        Case("JSON [[],[],...] of 16 MB", lambda: v2_json("sentiment", "text", "BYTES", [5_000_000], many_lists)),
        Case(
            "JSON [[],[],...] of 16 MB, 12 at once",
            lambda: at_once(v2_json("sentiment", "text", "BYTES", [5_000_000], many_lists), 12),
        ),
        Case(
            "1,200,000 keys of options, HTTP",
            lambda: over_http(SENTIMENT, b'{"inputs": "x", "options": ' + keys(1_200_000) + b"}"),
        ),
        Case("700,000 parameters, gRPC", lambda: over_grpc(with_parameters(700_000))),
        Case(
            "8,000,000 integers in JSON",
            lambda: v2_json(INTEGERS, "x", "INT64", [8_000_000], repeated(b"1", 8_000_000)),
        ),
        Case(
            "16,000,000 typed integers, gRPC",
            lambda: over_grpc(
                message(INTEGERS, "INT64", (16_000_000,), int64_contents=b"\1" * 16_000_000).SerializeToString()
            ),
        ),
        Case(
            "JSON answer of 3,000,000 floats",
            lambda: v2_binary(
                FLOATS, "FP32", [1, 3_000_000], struct.pack("<f", 1 / 3) * 3_000_000, binary_answer=False
            ),
        ),
        # A message of one string is encoded alike in both services.
        Case(
            "name of 15 MB to health Check",
            lambda: over_grpc(inference_pb2.ModelReadyRequest(name="n" * 15_000_000).SerializeToString(), HEALTH_CHECK),
        ),
        Case("model name of 15 MB, gRPC", lambda: over_grpc(message("n" * 15_000_000).SerializeToString())),
        Case("WebP of 49 megapixels, 4 at once, HTTP", lambda: at_once(over_http(IMAGES, webp(LARGEST_SIDE)), 4)),
    ]


def connections() -> list[Case]:
    """Return cases with many connections at once."""
    return [
        Case("128 connections at once, HTTP", lambda: http_connections(128), permitted=True),
        Case("128 connections at once, gRPC", lambda: grpc_connections(128), permitted=True),
    ]


def largest_http() -> list[Case]:
    """Return requests just within the limits of HTTP and JSON."""
    raw_floats = (MAX_BODY_BYTES - ROOM) // 4
    raw = struct.pack("<f", 1 / 3) * raw_floats
    escapes = (b"\\n", MAX_JSON_ESCAPES - ROOM)
    options = b'{"inputs": "good", "options": ' + keys(MAX_JSON_KEYS - ROOM) + b"}"
    found = [
        Case(
            f"{name}, HTTP",
            lambda shape=shape, kind=kind, item=item, count=count, model=model: v2_json(  # type: ignore[misc]
                model, "x", kind, shape, repeated(item, count)
            ),
            permitted=True,
        )
        for name, model, kind, shape, item, count in (
            ("most JSON numbers", FLOATS, "FP32", [1, MAX_JSON_VALUES - ROOM], b"0.3333333", MAX_JSON_VALUES - ROOM),
            ("most JSON integers", INTEGERS, "INT64", [1, MAX_JSON_VALUES - ROOM], b"1", MAX_JSON_VALUES - ROOM),
            ("most JSON strings", TEXTS, "BYTES", [1, MAX_BYTES_ELEMENTS], b'"x"', MAX_BYTES_ELEMENTS),
            ("most JSON lists", FLOATS, "FP32", [MAX_ROWS, LISTS_A_ROW, 1], repeated(b"[0.5]", LISTS_A_ROW), MAX_ROWS),
        )
    ]
    return [
        *found,
        Case(
            "largest binary tensor, binary answer, HTTP",
            lambda: v2_binary(FLOATS, "FP32", [1, raw_floats], raw, binary_answer=True),
            permitted=True,
        ),
        Case(
            "largest binary tensor, 4 at once, HTTP",
            lambda: at_once(v2_binary(FLOATS, "FP32", [1, raw_floats], raw, binary_answer=True), 4),
            permitted=True,
        ),
        Case(
            "most binary strings, HTTP",
            lambda: v2_binary(
                TEXTS, "BYTES", [1, MAX_BYTES_ELEMENTS], bytes_elements(MAX_BYTES_ELEMENTS), binary_answer=False
            ),
            permitted=True,
        ),
        Case("longest text, HTTP", lambda: text_body(b"word " * ((MAX_JSON_BYTES - ROOM) // 5)), permitted=True),
        Case("most escaped characters, HTTP", lambda: text_body(b"good" + escapes[0] * escapes[1]), permitted=True),
        Case("most keys, HTTP", lambda: over_http(SENTIMENT, options), permitted=False),
        Case(
            "most texts, HTTP",
            lambda: over_http(SENTIMENT, b'{"inputs": ' + repeated(b'"a film to see again"', MAX_ROWS) + b"}"),
            permitted=True,
        ),
        Case("largest PNG, HTTP", lambda: over_http(IMAGES, image(LARGEST_SIDE, "PNG")), permitted=True),
        Case("largest JPEG, HTTP", lambda: over_http(IMAGES, image(LARGEST_SIDE, "JPEG")), permitted=True),
        Case("largest WebP, HTTP", lambda: over_http(IMAGES, webp(LARGEST_WEBP_SIDE)), permitted=True),
    ]


def largest_grpc() -> list[Case]:
    """Return requests just within the limits of gRPC."""
    raw_floats = (MAX_BODY_BYTES - ROOM) // 4
    raw = struct.pack("<f", 1 / 3) * raw_floats
    typed_floats, typed_integers = (MAX_PARSED_BYTES - ROOM) // 4, MAX_PARSED_BYTES - ROOM
    strings = MAX_FIELDS - 64
    return [
        Case("largest raw tensor, gRPC", lambda: raw_message(FLOATS, "FP32", (1, raw_floats), raw), permitted=True),
        Case(
            "largest raw tensor, 4 at once, gRPC",
            lambda: at_once(raw_message(FLOATS, "FP32", (1, raw_floats), raw), 4),
            permitted=True,
        ),
        Case(
            "most raw strings, gRPC",
            lambda: raw_message(TEXTS, "BYTES", (1, MAX_BYTES_ELEMENTS), bytes_elements(MAX_BYTES_ELEMENTS)),
            permitted=True,
        ),
        Case(
            "most typed floats, gRPC",
            lambda: over_grpc(
                message(FLOATS, "FP32", (1, typed_floats), fp32_contents=[1 / 3] * typed_floats).SerializeToString()
            ),
            permitted=True,
        ),
        Case(
            "most typed integers, gRPC",
            lambda: over_grpc(
                message(
                    INTEGERS, "INT64", (1, typed_integers), int64_contents=b"\1" * typed_integers
                ).SerializeToString()
            ),
            permitted=True,
        ),
        Case(
            "most typed strings, gRPC",
            lambda: over_grpc(
                message(TEXTS, "BYTES", (1, strings), bytes_contents=[b"x" * 100] * strings).SerializeToString()
            ),
            permitted=True,
        ),
        Case(
            "longest text, gRPC",
            lambda: truncated_text(b"word " * ((MAX_PARSED_BYTES - ROOM) // 5)),
            permitted=True,
        ),
        Case("most inputs, gRPC", lambda: over_grpc(with_inputs("sentiment", MAX_TENSORS)), permitted=False),
        Case(
            "largest PNG, gRPC",
            lambda: over_grpc(
                heed_pb2.ClassifyImageRequest(
                    model="cifar10-vit", image=image(LARGEST_SIDE, "PNG")
                ).SerializeToString(),
                "/heed.v1.Heed/ClassifyImage",
            ),
            permitted=True,
        ),
    ]


def elsewhere() -> list[Case]:
    """Return cases that need a server of their own."""
    scrape = over_http("/metrics")
    return [
        Case("2,000 refusals while the log's disk is full, HTTP", lambda: refusals("HTTP"), where="full disk"),
        Case("2,000 refusals while the log's disk is full, gRPC", lambda: refusals("gRPC"), where="full disk"),
        Case("/metrics of many models", lambda: scrape, permitted=True, where="many models"),
        Case("/metrics of many models, 8 at once", lambda: at_once(scrape, 8), permitted=True, where="many models"),
        Case("/v2/models of many models", lambda: over_http("/v2/models"), permitted=True, where="many models"),
    ]
