"""What the tensors of PEFT's adapters do, as far as a copy has to know whose module's output was multiplied. No torch.

Where a copy's module computes ``f`` times what its source's does, the adapter's part has to be ``f`` times as much. Of
what is added (``B A``, ``(w1 * w2)``, ``w1 x w2``) one factor is multiplied; what multiplies the module's weight or its
output stays as it is; DoRA's magnitude is the length of what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping

from elastic_ir.errors import PlanError

#: By the name of a tensor: whether it is multiplied with its module.
ROLES: Mapping[str, bool] = {
    # LoRA, also with DoRA and as AdaLoRA: B A, B (A E)
    "lora_A": False, "lora_B": True, "lora_E": False, "ranknum": False, "lora_magnitude_vector": True,
    "lora_embedding_A": False, "lora_embedding_B": True,
    # LoHa, LoKr: products of which one factor is there once
    "hada_w1_a": True, "hada_w1_b": False, "hada_w2_a": False, "hada_w2_b": False, "hada_t1": False, "hada_t2": False,
    "lokr_w1": True, "lokr_w1_a": True, "lokr_w1_b": False, "lokr_w2": False, "lokr_w2_a": False, "lokr_w2_b": False,
    "lokr_t2": False,
    # VeRA: rows of B scaled; FourierFT: a transform, which is linear
    "vera_lambda_b": True, "vera_lambda_d": False, "fourierft_spectrum": True,
    # what multiplies the output, or turns the weight
    "ia3_l": False, "oft_R": False, "oft_r": False, "boft_R": False, "boft_s": False, "hra_u": False,
}  # fmt: skip
#: A length, which has no sign, and by which what it is the length of is divided.
MAGNITUDE = "lora_magnitude_vector"
#: Tensors that all layers share, or that concern no layer.
SHARED = {
    "vera_A", "vera_B", "randlora_A", "randlora_B", "vblora_vector_bank", "prompt_embeddings", "prefix_task_cols",
    "prefix_task_rows",
}  # fmt: skip
#: Sorts of adapters that are indexed by layer otherwise than by the names of their tensors.
_OTHERWISE = {
    "ADAPTION_PROMPT": "its layers are counted from the last one",
    "XLORA": "its classifier has outputs for every layer",
}


def refuse_kind(kind: str, config: Mapping[str, object], where: str) -> None:
    """PlanError for an adapter that does not name the layers of its tensors."""
    why = _OTHERWISE.get(kind)
    if why is None and config.get("layer_replication"):
        why = "its layer_replication repeats layers of the base itself"
    if why is not None:
        raise PlanError(f"{where} is an adapter of the sort {kind} and cannot follow: {why}")


def factor_of_role(role: str, factor: float, where: str) -> float | None:
    """What a tensor is multiplied by where its module was by ``factor``; None where it stays. PlanError."""
    if role not in ROLES:
        raise PlanError(
            f"{where}: the copy's module is its source's times {factor:g}, and what {role} has to be then is not known"
        )
    if role == MAGNITUDE:
        if not factor:
            raise PlanError(
                f"{where}: the copy's module is zero, and {role} (DoRA) has no meaning there; copies that are not "
                "zero can follow"
            )
        return abs(factor)
    return factor if ROLES[role] else None
