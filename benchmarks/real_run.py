"""One process of `benchmarks.real`: ``python -m benchmarks.real_run (jmi | transformers) MODEL STARTED``.

From its start to the first logits, then decoding and patching; prints what each took, as JSON. ``STARTED``
is the clock (`time.time`) when the process was made.
"""

import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

CLEAN = "When John and Mary went to the shop, John gave the book to"
CORRUPTED = "When John and Mary went to the shop, Mary gave the book to"
DECODED, CALLS = 20, 3
EVERY = 9
"""Transformers patches every ninth cell: its cells are runs of one length, so each takes as long."""

Took = tuple[float, float]
"""CPU-seconds and seconds."""


class Stages:
    """What each stage took; a stage may be of several parts of one kind."""

    def __init__(self) -> None:
        self.took: dict[str, Took] = {}

    @contextlib.contextmanager
    def stage(self, name: str, parts: int = 1) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.took[name] = (time.process_time() - cpu) / parts, (time.perf_counter() - wall) / parts

    def again(self, name: str, parts: int, run: Callable[[], Any]) -> None:
        """The median of some calls."""
        found = []
        for _ in range(CALLS):
            with self.stage(name, parts):
                run()
            found.append(self.took[name])
        cpu, wall = zip(*found, strict=True)
        self.took[name] = statistics.median(cpu), statistics.median(wall)


def with_jmi(model: str, started: float) -> dict[str, Any]:
    """What each stage took, and bytes in memory after loading by bytes of the weights."""
    import jax
    import numpy as np

    import jmi
    import jmi_models

    jax.numpy.zeros(1).block_until_ready()
    stages, before = Stages(), _resident()
    with stages.stage("load"):
        lm = jmi_models.load(model, progress=False)
        jax.block_until_ready(lm.params)
    held = _resident() - before
    np.asarray(lm.run(CORRUPTED, logits_at=-1).logits)
    stages.took["first logits"] = time.process_time(), time.time() - started
    with stages.stage("decode, first", DECODED):
        np.asarray(lm.generate(CORRUPTED, DECODED).tokens)
    stages.again("decode", DECODED, lambda: np.asarray(lm.generate(CORRUPTED, DECODED).tokens))
    metric = jmi.metrics.LogitDiff(lm.token_id("Mary"), lm.token_id("John"))
    into: dict[str, Any] = {"metric": metric, "over": ["layer", "head"], "into": "corrupted"}
    arch: Any = lm.arch
    cells = arch.n_layers * arch.n_heads
    for name in ("patch, first", "patch"):
        with stages.stage(name, cells):
            jmi.interp.patch(lm, CLEAN, CORRUPTED, "attn.hook_z", **into)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
    return {**stages.took, "resident": held / weights}


def with_transformers(model: str, started: float) -> dict[str, Any]:
    """The same of transformers."""
    import torch
    import transformers

    from jmi_models.gguf import places

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(2)
    torch.zeros(1)
    stages, file, before = Stages(), places.from_package(model), _resident()
    with stages.stage("load"):
        lm = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    held = _resident() - before
    clean, corrupted = (tokenizer(text, return_tensors="pt").input_ids for text in (CLEAN, CORRUPTED))

    def run(tokens: Any) -> Any:
        with torch.inference_mode():
            return lm(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]

    run(corrupted).numpy()
    stages.took["first logits"] = time.process_time(), time.time() - started

    def decode() -> Any:
        exactly = {"max_new_tokens": DECODED, "min_new_tokens": DECODED, "do_sample": False}
        with torch.inference_mode():
            mask = torch.ones_like(corrupted)
            return lm.generate(corrupted, attention_mask=mask, pad_token_id=0, **exactly)

    stages.again("decode", DECODED, decode)
    heads = lm.config.num_attention_heads
    cells = [divmod(i, heads) for i in range(0, heads * len(lm.model.layers), EVERY)]
    with stages.stage("patch", len(cells)):
        _patch(lm, run, clean, corrupted, cells)
    weights = sum(value.nbytes for value in lm.parameters())
    return {**stages.took, "resident": held / weights}


def _patch(
    lm: Any, run: Callable[[Any], Any], clean: Any, corrupted: Any, cells: list[tuple[int, int]]
) -> Any:
    """A loop over heads with hooks of torch; the logits of each cell."""
    outs = [layer.self_attn.o_proj for layer in lm.model.layers]
    kept: list[Any] = []
    keeping = [
        out.register_forward_pre_hook(lambda module, args: kept.append(args[0].clone())) for out in outs
    ]
    run(clean)
    for handle in keeping:
        handle.remove()
    width = lm.config.head_dim

    def one(layer: int, head: int) -> Any:
        where = slice(head * width, (head + 1) * width)

        def patch(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            value = args[0].clone()
            value[..., where] = kept[layer][..., where]
            return (value,)

        handle = outs[layer].register_forward_pre_hook(patch)
        logits = run(corrupted)
        handle.remove()
        return logits

    return [one(*cell) for cell in cells]


def _resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    way, name, clock = sys.argv[1:]
    print(json.dumps({"jmi": with_jmi, "transformers": with_transformers}[way](name, float(clock))))
