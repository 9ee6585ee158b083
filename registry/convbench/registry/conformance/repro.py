"""A failure as Python: what `convbench verify` and the pytest plugin print, to be pasted and run."""

from __future__ import annotations

from dataclasses import fields

from convbench.registry.conformance.cases import Case


def python_of(backend: str, case: Case, dtype: str, device: str, seed: int = 0, refused: bool = False) -> str:
    """Python that runs one case of a registered backend again, on its own, and prints its outcome."""
    if refused:
        return (
            "from convbench.registry import OPS, discover\n"
            "from convbench.registry.conformance.cases import Case\n"
            "from convbench.registry.conformance.verify import check_refusal\n\n"
            f"case = {literal(case)}\n"
            f"print(check_refusal(discover().backend({backend!r}), OPS[case.op], case, {dtype!r}, {device!r}))"
        )
    return (
        "from convbench.registry import verify\n"
        "from convbench.registry.conformance.cases import Case\n\n"
        f"case = {literal(case)}\n"
        f"report = verify({backend!r}, device={device!r}, dtypes=[{dtype!r}], cases={{case.op: [case]}}, "
        f"seed={seed})\n"
        "print(report.outcomes[0])"
    )


def literal(case: Case) -> str:
    """The case as it is constructed, without what is as usual."""
    usual = Case(case.op, case.shapes)
    parts = [repr(case.op), repr(case.shapes)]
    for field in fields(case)[2:]:
        value = getattr(case, field.name)
        if value != getattr(usual, field.name):
            parts.append(f"{field.name}={value!r}")
    return f"Case({', '.join(parts)})"
