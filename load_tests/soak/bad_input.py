"""Inputs that a server must refuse, with the error that must come."""

from load_tests.material import load_images
from load_tests.soak.servers import MAX_BODY_BYTES
from load_tests.soak.wire import Request, infer_path, json_tensor, v2_body, v2_message


def bad_requests(text: str, image: str, translation: str) -> list[Request]:
    """Return bad requests over both protocols.

    Args:
        text: name of a text classifier.
        image: name of an image classifier.
        translation: name of a translation model.
    """
    one = json_tensor("text", ["x"])
    bad: list[tuple[str, str, str, bytes]] = [  # what, error, path, body
        ("unknown model", "NOT_FOUND", infer_path("nope"), v2_body(one)),
        ("unknown path", "NOT_FOUND", "/v3", b"{}"),
        ("not JSON", "INVALID_ARGUMENT", infer_path(text), b'{"inputs": [}'),
        ("not UTF-8", "INVALID_ARGUMENT", infer_path(text), b'{"inputs": "\xff"}'),
        ("no inputs", "INVALID_ARGUMENT", infer_path(text), b"{}"),
        ("unknown input", "INVALID_ARGUMENT", infer_path(text), v2_body(json_tensor("txt", ["x"]))),
        ("wrong type", "INVALID_ARGUMENT", infer_path(text), v2_body(json_tensor("text", [1.0], "FP32"))),
        ("wrong shape", "INVALID_ARGUMENT", infer_path(text), v2_body(json_tensor("text", ["x"], shape=[2]))),
        ("empty text", "INVALID_ARGUMENT", infer_path(text), v2_body(json_tensor("text", [""]))),
        ("too many rows", "INVALID_ARGUMENT", infer_path(text), v2_body(json_tensor("text", ["x"] * 513))),
        ("too many tokens", "INVALID_ARGUMENT", infer_path(text), v2_body(json_tensor("text", ["x " * 2000]))),
        ("negative timeout", "INVALID_ARGUMENT", infer_path(text), v2_body(one, timeout=-1)),
        ("not an image", "INVALID_ARGUMENT", f"/models/{image}", b"GIF89a nonsense"),
        ("half an image", "INVALID_ARGUMENT", f"/models/{image}", load_images(1).files[0][:100]),
        ("too many beams", "INVALID_ARGUMENT", infer_path(translation), v2_body(one, num_beams=99)),
        ("unknown language", "INVALID_ARGUMENT", f"/models/{translation}",
         b'{"inputs": "x", "parameters": {"tgt_lang": "fr"}}'),
        ("ragged numbers", "INVALID_ARGUMENT", infer_path("soak-double"),
         v2_body(json_tensor("x", [[1.0, 2.0], [3.0]], "FP32", [2, 16]))),
        ("body too large", "RESOURCE_EXHAUSTED", f"/models/{text}", b" " * (MAX_BODY_BYTES + 1)),
    ]  # fmt: skip
    requests = [Request(kind=f"bad: {what}", error=error, path=path, body=body) for what, error, path, body in bad]
    messages = [
        ("unknown model", "NOT_FOUND", v2_message("nope", "text", [b"x"], raw=True)),
        ("unknown input", "INVALID_ARGUMENT", v2_message(text, "txt", [b"x"], raw=True)),
        ("not UTF-8", "INVALID_ARGUMENT", v2_message(text, "text", [b"\xff"], raw=False)),
        ("empty text", "INVALID_ARGUMENT", v2_message(text, "text", [b""], raw=True)),
        ("not an image", "INVALID_ARGUMENT", v2_message(image, "image", [b"nonsense"], raw=True)),
        ("too many beams", "INVALID_ARGUMENT", v2_message(translation, "text", [b"x"], raw=True, num_beams=99)),
        ("message too large", "RESOURCE_EXHAUSTED", v2_message(text, "text", [b"x" * MAX_BODY_BYTES], raw=True)),
    ]
    cut_short = v2_message(text, "text", [b"x"], raw=True)
    cut_short.raw_input_contents[0] = b"\x09\0\0\0x"
    messages.append(("raw contents cut short", "INVALID_ARGUMENT", cut_short))
    return requests + [
        Request(kind=f"bad: {what}", error=error, call="ModelInfer", message=message)
        for what, error, message in messages
    ]
