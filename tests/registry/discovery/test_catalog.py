"""Names: what is listed, how a collision is told apart, what a glob takes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from convbench.registry import AmbiguousName, Plugin, PluginError, UnknownName, UsageError
from convbench.registry.discovery.catalog import Catalog


def catalog(**offers: Iterable[str]) -> Catalog[str]:
    """A catalog of backends by distribution; a record is `distribution/name`."""
    made: Catalog[str] = Catalog("backend")
    for distribution, names in offers.items():
        plugin = Plugin(distribution, distribution, "1.0", distribution)
        made.add(plugin, [(name, f"{distribution}/{name}") for name in names])
    return made


def test_names_are_sorted_and_found() -> None:
    found = catalog(b=["winograd", "fft"], a=["loops"])
    assert list(found) == ["fft", "loops", "winograd"]
    assert found["fft"] == found.find("fft") == "b/fft"
    assert found.plugin("fft").distribution == "b"
    assert len(found) == 3


def test_the_qualified_name_always_works() -> None:
    assert catalog(a=["fft"]).find("a:fft") == "a/fft"


def test_a_collision_lists_both_and_asks_which() -> None:
    found = catalog(acme=["fft", "loops"], zenith=["fft"])
    assert list(found) == ["acme:fft", "loops", "zenith:fft"]
    assert found.find("zenith:fft") == "zenith/fft"
    assert found["acme:fft"] == "acme/fft"
    with pytest.raises(AmbiguousName) as raised:
        found.find("fft")
    assert str(raised.value) == (
        "backend 'fft' is registered by acme and zenith; choose 'acme:fft' or 'zenith:fft'"
    )


def test_a_mapping_has_no_ambiguous_key() -> None:
    found = catalog(acme=["fft"], zenith=["fft"])
    assert "fft" not in found
    assert found.get("fft") is None
    assert {name: found[name] for name in found} == dict(found)


@pytest.mark.parametrize("name", ["im2co", "IM2COL", "im-2-col"])
def test_an_unknown_name_gets_the_nearest_match(name: str) -> None:
    with pytest.raises(UnknownName) as raised:
        catalog(a=["im2col", "loops", "torch"]).find(name)
    assert str(raised.value) == (
        f"unknown backend {name!r}; did you mean 'im2col'? available: im2col, loops, torch"
    )


def test_a_name_unlike_any_gets_the_list_alone() -> None:
    with pytest.raises(UnknownName, match=r"^unknown backend 'zzz'; available: fft$"):
        catalog(a=["fft"]).find("zzz")
    with pytest.raises(UnknownName, match=r"available: none$"):
        catalog().find("fft")


def test_the_wrong_package_is_unknown() -> None:
    with pytest.raises(UnknownName, match="'b:fft'"):
        catalog(a=["fft"]).find("b:fft")


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["*"], ["acme:fft", "loops", "torch", "zenith:fft"]),
        (["t*", "loops"], ["loops", "torch"]),
        (["*", "torch"], ["acme:fft", "loops", "torch", "zenith:fft"]),
        (["f*"], ["acme:fft", "zenith:fft"]),
        (["acme:*"], ["acme:fft"]),
        (["acme:fft"], ["acme:fft"]),
        (["zenith:torch", "torch"], ["torch"]),
        (["*", "!loops"], ["acme:fft", "torch", "zenith:fft"]),
        (["!acme:*", "torch", "f*"], ["torch", "zenith:fft"]),
        (["!fft*", "!torch"], ["loops"]),
        ([], []),
    ],
)
def test_globs(patterns: list[str], chosen: list[str]) -> None:
    assert catalog(acme=["fft", "loops"], zenith=["fft", "torch"]).matching(patterns) == chosen


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"'resnet\*'"):
        catalog(a=["fft"]).matching(["f*", "resnet*"])
    with pytest.raises(UnknownName, match="unknown backend 'ftf'; did you mean 'fft'"):
        catalog(a=["fft"]).matching(["*", "!ftf"])
    with pytest.raises(AmbiguousName):
        catalog(a=["fft"], b=["fft"]).matching(["fft"])
    with pytest.raises(UsageError, match=r"^fft, !f\* leaves no backend; available: fft, torch$"):
        catalog(a=["fft", "torch"]).matching(["fft", "!f*"])


def test_one_distribution_cannot_offer_a_name_twice() -> None:
    found = catalog(a=["fft"])
    again = Plugin("other", "a", "1.0", "other")
    with pytest.raises(PluginError, match="backend 'fft' is offered twice by a"):
        found.add(again, [("loops", "x"), ("fft", "x")])
    assert list(found) == ["fft"]


def test_a_star_does_not_cross_a_slash() -> None:
    catalog: Catalog[int] = Catalog("architecture")
    catalog.add(Plugin("p", "p", "1", "p"), [("resnet18", 1), ("torchvision/resnet18", 2), ("layers/a", 3)])
    assert catalog.matching(["*"]) == ["resnet18"]
    assert catalog.matching(["torchvision/*"]) == ["torchvision/resnet18"]
    assert catalog.matching(["*/*18"]) == ["torchvision/resnet18"]
