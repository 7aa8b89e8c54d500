"""One request, from its inputs to its answer and receipt: validate, preprocess, submit, postprocess, account."""
