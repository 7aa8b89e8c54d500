// Calls of @huggingface/inference; prints a JSON object. Arguments: HTTP URL, path of a picture.
import { readFileSync } from "node:fs";

import { InferenceClient } from "@huggingface/inference";

const [url, picture] = process.argv.slice(2);
const at = (model: string) => new InferenceClient().endpoint(`${url}/models/${model}`);
const sentence = "The dog is asleep.";
const pieces = [];
const stream = { endpointUrl: `${url}/models/translation-en-de`, inputs: sentence };
for await (const piece of new InferenceClient().streamingRequest(stream)) {
  pieces.push(piece);
}
const refused = await at("sentiment")
  .textClassification({ inputs: "" })
  .catch((error) => error);
console.log(
  JSON.stringify({
    text: await at("sentiment").textClassification({ inputs: "A wonderful film." }),
    best: await at("sentiment").textClassification({ inputs: "A wonderful film.", parameters: { top_k: 1 } }),
    picture: await at("cifar10-vit").imageClassification({ data: new Blob([readFileSync(picture)]) }),
    translated: await at("translation-en-de").translation({ inputs: sentence }),
    several: await at("translation-en-de").translation({ inputs: [sentence, "A man sleeps."] as unknown as string }),
    beams: await at("translation-en-de").translation({
      inputs: sentence,
      parameters: { src_lang: "en", tgt_lang: "de", generate_parameters: { num_beams: 4 } },
    }),
    pieces,
    refused: refused.httpResponse.body,
  }),
);
