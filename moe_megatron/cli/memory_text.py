"""What fits into a memory, in words and as JSON."""

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from moe_megatron.config.aligned import aligned

if TYPE_CHECKING:
    from moe_megatron.inference.planning.memory_plan import MemoryPlan
    from moe_megatron.inference.planning.plans import Plan

_HITS = {
    "trace": "the best policy on the second half of the trace, which knows the first",
    "profile": "the share of all uses that the most used experts have in the routing profile",
    "chance": "chance, as nothing is known of the routing; record a trace (`moe-megatron cache "
    "record`) and give it as --trace",
}


def memory_text(found: "MemoryPlan") -> str:
    """Sizes, speeds, a table of plans, and how to do the fastest."""
    sizes, speeds = found.sizes, found.speeds
    of_file = sizes.others + sizes.every * sizes.file
    lines = [
        f"{found.model}: {of_file / 1e9:.3g} GB, of which {sizes.every * sizes.file / 1e9:.3g} are "
        f"{sizes.every:,} experts, top-{sizes.top_k} of {sizes.experts} in {sizes.moe_layers} "
        f"layers; a token reads {_read(found) / 1e9:.3g} GB",
        f"measured here: {speeds.memory / 1e9:.3g} GB/s of weights in memory; of missing experts "
        f"{speeds.disk / 1e9:.3g} GB/s from the disk, {speeds.pages / 1e9:.3g} if the system "
        f"has them; {1e3 * speeds.layer:.2g} ms a layer besides",
        f"of {found.memory / 1e9:g} GB the program takes {found.program / 1e9:.2f}, weights "
        f"besides experts {sizes.others / 1e9:.3g}, keys and values of {found.context:,} tokens "
        f"{found.context * sizes.cached_token / 1e9:.2g}",
        f"hit rates: {_HITS[found.hits_from]}",
        "",
    ]
    head = ["experts", "in memory", "GB", "hit rate", "tokens/s", "if the system has the files"]
    lines += aligned([head, *(_row(it) for it in found.plans)])
    return "\n".join([*lines, "", _advice(found)])


def memory_json(found: "MemoryPlan") -> str:
    """All of it; plans that do not fit have no speed."""
    plans = [
        {name: None if value != value else value for name, value in asdict(it).items()}
        for it in found.plans
    ]
    of_experts = {str(key or "as it is"): it for key, it in found.speeds.expert.items()}
    speeds = asdict(replace(found.speeds, expert={})) | {"expert": of_experts}
    fields = {
        "model": str(found.model),
        "memory": found.memory,
        "program": found.program,
        "context": found.context,
        "sizes": asdict(found.sizes),
        "speeds": speeds,
        "hits_from": found.hits_from,
        "plans": plans,
    }
    return json.dumps(fields, indent=2)


def _read(found: "MemoryPlan") -> int:
    return found.sizes.read_always + found.sizes.needed * found.sizes.expert


def _row(plan: "Plan") -> list[str]:
    if not plan.fits:
        return [plan.experts, "none", f"{plan.nbytes / 1e9:.3g} needed", "-", "-", "-"]
    return [
        plan.experts,
        "all" if plan.share == 1 else f"{plan.slots:,} ({plan.share:.0%})",
        f"{plan.nbytes / 1e9:.3g}",
        f"{plan.hit_rate:.1%}",
        f"{plan.tokens_per_second:.3g}",
        f"{plan.tokens_per_second_pages:.3g}",
    ]


def _advice(found: "MemoryPlan") -> str:
    """How to do what is fastest; nothing that is slower by a tenth is worth other numbers."""
    fitting = [it for it in found.plans if it.fits]
    if not fitting:
        least = min(found.plans, key=lambda it: it.nbytes)
        return f"Nothing fits: {least.nbytes / 1e9:.3g} GB is the least, with {least.experts}."
    fastest = max(it.tokens_per_second for it in fitting)
    best = next(it for it in fitting if it.tokens_per_second >= 0.9 * fastest)
    ways = []
    if best is not found.plans[0]:
        bits, _, group = best.experts.removeprefix("int").partition(" g")
        size = f" --group-size {group}" if group else ""
        ways.append(f"moe-megatron quantize {found.model} NEW_FOLDER --bits {bits}{size}")
    if best.share < 1:
        cache = (best.nbytes - found.sizes.besides(found.program, found.context)) / 1e9
        ways.append(f"model.set_expert_cache(ExpertCache({cache:.4g}))")
    ways = ways or ["load it; all of it fits as it is"]
    return f"Fastest within a tenth: {best.experts}, {best.tokens_per_second:.3g} tokens/s: " + (
        "; ".join(ways)
    )
