"""Calls of OpenAI's Python client; prints a JSON object. Argument: the server's HTTP URL."""

import asyncio
import json
import struct
import sys

import openai

MODEL, TEXTS = "embedder", ["a red dog sleeps", "a blue bird"]


def refused(client: openai.OpenAI, **request: object) -> dict[str, object]:
    """Return the status and the code of an error."""
    try:
        client.embeddings.create(**{"model": MODEL, "input": TEXTS, **request})
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code}
    return {}


def float32(vectors: list[list[float]]) -> list[list[float]]:
    """Round numbers to float32, as which base64 has them."""
    return [list(struct.unpack(f"{len(each)}f", struct.pack(f"{len(each)}f", *each))) for each in vectors]


async def embedded(url: str) -> list[list[float]]:
    """Embed the texts by the client that does not block."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer = await client.embeddings.create(model=MODEL, input=TEXTS)
    return [each.embedding for each in answer.data]


def main() -> None:
    """Call everything."""
    url = sys.argv[1] + "/v1"
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    tokens = client.post(f"{sys.argv[1]}/tokenize", cast_to=object, body={"inputs": TEXTS, "model": MODEL})
    ids = [[token["id"] for token in each] for each in tokens]
    answers = {
        "base64": client.embeddings.create(model=MODEL, input=TEXTS),
        "float": client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float"),
        "ids": client.embeddings.create(model=MODEL, input=ids),
    }
    vectors = {key: float32([each.embedding for each in answer.data]) for key, answer in answers.items()}
    short = client.embeddings.create(model=MODEL, input="dog", dimensions=4, encoding_format="float")
    found = {
        "vectors": vectors | {"async": float32(asyncio.run(embedded(url)))},
        "short": short.data[0].embedding,
        "usage": answers["float"].usage.prompt_tokens,
        "num_ids": sum(map(len, ids)),
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve(MODEL).id,
        "unknown": refused(client, model="none"),
        "too_wide": refused(client, dimensions=13),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
