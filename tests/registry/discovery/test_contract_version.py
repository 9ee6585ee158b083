"""A plugin says which contract it was written for, and is refused whole where convbench keeps another."""

from __future__ import annotations

import pytest

from conftest import Install
from convbench.registry import PluginError, discover
from convbench.registry.discovery import contract_version
from convbench.registry.discovery.contract_version import CONTRACT, check_contract

SOURCE = """
    from convbench.registry import Backend, hookimpl

    {declaration}

    @hookimpl
    def convbench_backends():
        {body}
"""
OFFERS = "yield Backend(name='versioned', summary='', load=dict)"


def error_of(install: Install, declaration: str, body: str = OFFERS) -> str | None:
    """What became of a plugin with this declaration."""
    install("versioned", SOURCE.format(declaration=declaration, body=body))
    registry = discover()
    (plugin,) = (plugin for plugin in registry.plugins if plugin.distribution == "versioned")
    assert ("versioned" in registry.backends) is (plugin.error is None)
    assert set(discover(installed=()).backends) <= set(registry.backends)  # every other plugin works on
    return plugin.error


@pytest.mark.parametrize("declaration", ["", f"convbench_contract = {CONTRACT}"])
def test_the_current_contract_is_taken(install: Install, declaration: str) -> None:
    assert error_of(install, declaration) is None


def test_a_newer_contract_is_refused_with_a_sentence(install: Install) -> None:
    error = error_of(install, "convbench_contract = 99", body="raise RuntimeError('half-run')")
    assert error == (
        f"it was written for contract 99 of convbench, and this convbench keeps contract {CONTRACT}; "
        "upgrade convbench"
    )


@pytest.mark.parametrize("value", ["0", "-1", "True", "1.0", "'1'", "None"])
def test_what_is_no_version_is_refused(install: Install, value: str) -> None:
    error = error_of(install, f"convbench_contract = {value}")
    assert error == f"convbench_contract must be a whole number such as {CONTRACT}, not {value}"


def test_a_contract_that_is_understood_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract_version, "CONTRACT", 5)
    monkeypatch.setattr(contract_version, "OLDEST", 3)

    class Plugin:
        convbench_contract = 3

    check_contract(Plugin)
    Plugin.convbench_contract = 2
    with pytest.raises(PluginError, match=r"contract 2 of convbench.*contracts 3 to 5.*upgrade the plugin"):
        check_contract(Plugin)
