// Calls of the client that @hey-api/openapi-ts generates into ./generated; prints a JSON object. Argument: HTTP URL.
import { answer, explain, infer } from "./generated";
import { createClient } from "./generated/client";

const client = createClient({ baseUrl: process.argv[2] });
const body = { inputs: [{ name: "text", shape: [1], datatype: "BYTES", data: ["a fine film"] }] };
const path = { model: "sentiment" };
const inferred = await infer({ client, path, body });
const explained = await explain({ client, path, body: { ...body, parameters: { method: "occlusion" } } });
const answered = await answer({ client, path, body: { inputs: "a fine film", parameters: { top_k: 1 } } });
const refused = await infer({ client, path: { model: "unknown" }, body });
console.log(
  JSON.stringify({
    outputs: inferred.data?.outputs.map((output) => output.name),
    label: inferred.data?.outputs[0].data,
    target: explained.data?.target,
    words: explained.data?.features?.map((feature) => feature.text),
    answered: answered.data,
    refused: refused.error?.error,
  }),
);
