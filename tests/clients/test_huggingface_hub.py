"""`huggingface_hub.InferenceClient`, unchanged, with the address of a model as its model."""

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.conftest import Server


def test_text_classification(server: Server) -> None:
    """Labels and scores, best first; top_k; an error with our words in it."""
    client = InferenceClient(model=f"{server.http}/models/sentiment")
    best, other = client.text_classification("A wonderful film.")
    assert (best.label, other.label) == ("POSITIVE", "NEGATIVE")
    assert best.score > other.score
    assert len(client.text_classification("A wonderful film.", top_k=1)) == 1
    with pytest.raises(HfHubHTTPError) as raised:
        client.text_classification("")
    assert raised.value.response.json() == {"error": "inputs is empty"}
