"""The OpenAPI document matches the server: schemathesis generates requests of every kind from the document."""

import base64
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import Server, noise_files

MODEL = "{model}"  # in the paths that are asked for each task
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_answer_is_as_the_page_says(server: Server) -> None:
    """Status, content type and body conform for every operation, also with invalid requests; none is a server error."""
    operations = operations_of(server)
    assert len(operations) >= 14
    ask_all(operations, "sentiment")


@pytest.mark.slow
def test_every_answer_of_an_image_model_is_as_the_page_says(image_server: Server) -> None:
    """Inference and the task API conform, also with image files as bodies."""
    operations = [operation for operation in operations_of(image_server) if operation.body and MODEL in operation.path]
    assert {"/models/{model}", "/v2/models/{model}/infer"} <= {operation.path for operation in operations}
    ask_all(operations, "vit")


@pytest.mark.slow
def test_every_answer_of_a_translation_model_is_as_the_page_says(translation_server: Server) -> None:
    """Inference and the task API conform, also with streams."""
    operations = operations_of(translation_server)
    ask_all([operation for operation in operations if operation.body and MODEL in operation.path], "dogs")


def test_explanations_are_as_the_page_says(server: Server, image_server: Server, translation_server: Server) -> None:
    """Explanations of each task conform on both APIs; the inputs are given because random ones are no images."""
    image = base64.b64encode(noise_files(1)[0]).decode()
    for running, model, name, element in (
        (server, "sentiment", "text", "a fine film"),
        (image_server, "vit", "image", image),
        (translation_server, "dogs", "text", "three blue dogs"),
    ):
        operations = {operation.path: operation for operation in operations_of(running)}
        for path, body in (
            (
                "/v2/models/{model}/explain",
                {
                    "inputs": [{"name": name, "shape": [1], "datatype": "BYTES", "data": [element]}],
                    "parameters": {"method": "shap", "n_samples": 128},
                },
            ),
            ("/models/{model}", {"inputs": element, "parameters": {"explain": {"method": "lime"}}}),
        ):
            case = operations[path].Case(path_parameters={"model": model}, body=body, media_type="application/json")
            assert case.call_and_validate(checks=CHECKS).status_code == 200


def operations_of(server: Server) -> list[Any]:
    """Return all operations of the document."""
    api = schemathesis.openapi.from_url(f"{server.http}/openapi.json")
    return [result.ok() for result in api.get_all_operations()]


def ask_all(operations: list[Any], model: str) -> None:
    """Send generated requests to each operation, and check the responses."""
    for operation in operations:
        # A GET without parameters cannot be wrong.
        for mode in schemathesis.GenerationMode if operation.body else [schemathesis.GenerationMode.POSITIVE]:

            @settings(
                max_examples=20 if MODEL in operation.path else 6,  # the APIs of other servers have many paths
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                # Names come from the store, because missing models have few responses.
                case.path_parameters.update(
                    {
                        name: known
                        for name, known in (("model", model), ("version", "1"))
                        if name in case.path_parameters
                    }
                )
                response = case.call_and_validate(checks=CHECKS)
                # 504 is a fair answer to a deadline of a millisecond; 500 never is.
                assert response.status_code not in {500, 502}

            ask()
