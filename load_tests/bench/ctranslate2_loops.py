"""CTranslate2 alone in a loop, on one thread: what served decoding is measured against.

Reads lines from standard input; each makes it run all loops once and print a line of JSON: tokens written per second,
by precision, beams and sentences of a batch. The sentences are tokenized beforehand, all are there from the start, and
CTranslate2 sorts them by length, which no server can.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer

from load_tests.bench.ctranslate2_model import max_positions, open_ctranslate2, write_ctranslate2
from load_tests.bench.translation import BEAMS, CONCURRENCIES, MAX_NEW_TOKENS, PRECISIONS, sentences_of
from load_tests.material import load_translations


def main() -> None:
    """Convert the model folder of the command line, then measure one loop for each line of input."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    texts = load_translations().texts
    with tempfile.TemporaryDirectory() as temporary:
        write_ctranslate2(folder, Path(temporary))
        translators = {precision: open_ctranslate2(Path(temporary), precision) for precision in PRECISIONS}
    longest = min(MAX_NEW_TOKENS, max_positions(folder) - 1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    print("ready", flush=True)
    for _ in sys.stdin:
        measured = {}
        for precision, translator in translators.items():
            for beams in BEAMS:
                for size in CONCURRENCIES:
                    sources = [tokenizer.encode(text).tokens for text in sentences_of(texts, size, count)]
                    options = {"beam_size": beams, "max_batch_size": size, "max_decoding_length": longest}
                    translator.translate_batch(sources[:size], **options)
                    started_s = time.perf_counter()
                    results = translator.translate_batch(sources, **options)
                    tokens = sum(len(result.hypotheses[0]) for result in results)
                    measured[f"{precision}: beam {beams}, {size}"] = tokens / (time.perf_counter() - started_s)
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
