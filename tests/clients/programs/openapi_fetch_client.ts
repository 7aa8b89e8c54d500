// Calls of openapi-fetch with the types that openapi-typescript writes into ./schema.d.ts; prints a JSON object.
// Argument: HTTP URL.
import createClient from "openapi-fetch";

import type { paths } from "./schema";

const client = createClient<paths>({ baseUrl: process.argv[2] });
const body = { inputs: [{ name: "text", shape: [1], datatype: "BYTES", data: ["a fine film"] }] };
const params = { path: { model: "sentiment" } };
const inferred = await client.POST("/v2/models/{model}/infer", { params, body });
const explained = await client.POST("/v2/models/{model}/explain", {
  params,
  body: { ...body, parameters: { method: "occlusion" } },
});
const answered = await client.POST("/models/{model}", {
  params,
  body: { inputs: "a fine film", parameters: { top_k: 1 } },
});
const refused = await client.POST("/v2/models/{model}/infer", { params: { path: { model: "unknown" } }, body });
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
