"""Continuous batching over transformers' own modelling code: one noun a file.

A request is a `sequence`; `schedule` picks what one step computes, `fair` whose turn it is, and a block `table` gives
KV memory from the pool of `blocks` (all pure Python); `run` has the step computed in one `forward` pass with
`attention` of ours, without Python where `trace` could record it, which `simplify` shortens, or as `compile` made it
where that was asked for;
`sample` draws the next tokens, `detokenize` turns them into text; `engine` is the loop that ties them together, and a
`generation` what it hands out; `meter` counts and charges what a step costs, with the GPU's counter of `energy`;
`memory` is for a step that ran out of it. `source` finds a model's files, `convert` unpacks GGUF, `load` brings it into
memory as far as the `machine` allows, which `weigh` knows beforehand; `linears` leaves in the file what can stay there,
`pack`, `nf4` and `fuse` arrange the modules, `check` proves that the model computes right, and `errors` say why one
can't be served. `lora` adds adapters, `parallel` splits a model over `ranks`.

May import `services.common`; knows nothing of Flask. This is the only folder that imports torch, and importing the
folder itself does not.
"""
