"""`timm/<name>`: listed from timm's source where it is installed, adapted through its own arguments."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from convbench.plugins.architectures import timm as plugin
from convbench.plugins.architectures.registered_names import registered_names

SOURCE = '''
@register_model
def resnet18(pretrained=False, **kwargs) -> ResNet:
    """A ResNet."""


@register_model
@another(
    decorator=1
)
def vit_base_patch16_384(pretrained=False, **kwargs):
    pass


@register_model
def vit_306m_enc(pretrained=False):
    pass


@register_model()
def regnety_320(
    *, pretrained=False
):
    pass


def helper():
    """See @register_model
    def not_a_model
    """
'''


@pytest.fixture
def source_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm that must not be imported."""
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    models = tmp_path / "timm" / "models"
    models.mkdir(parents=True)
    (tmp_path / "timm" / "__init__.py").write_text("raise ImportError('timm was imported')", encoding="utf-8")
    (models / "some.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()


def test_nothing_is_offered_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        plugin, "registered_names", lambda package: registered_names(f"{package}_is_not_here")
    )
    assert list(plugin.convbench_architectures()) == []


@pytest.mark.usefixtures("source_of_timm")
def test_listed_without_importing():
    records = {record.name: record for record in plugin.convbench_architectures()}
    assert set(records) == {"timm/resnet18", "timm/vit_base_patch16_384", "timm/regnety_320"}
    assert records["timm/resnet18"].input_shape == (1, 224, 224)
    assert records["timm/vit_base_patch16_384"].input_shape == (1, 384, 384)
    assert records["timm/vit_base_patch16_384"].recipe.resize == (384, 384)
    assert records["timm/regnety_320"].input_shape == (1, 224, 224)  # 320 is not a size
    assert "timm" not in sys.modules


@pytest.mark.parametrize(("fixed", "size"), [(False, {}), (True, {"img_size": 384})])
def test_built_with_timms_own_arguments(fixed: bool, size: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    fake = ModuleType("timm")
    fake.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=fixed)
    fake.create_model = lambda name, **options: (name, options)
    monkeypatch.setitem(sys.modules, "timm", fake)
    built = plugin.build("vit_base_patch16_384", 384, num_classes=7, in_channels=2, drop_rate=0.1)
    adapted = {"pretrained": False, "num_classes": 7, "in_chans": 2, "drop_rate": 0.1}
    assert built == ("vit_base_patch16_384", adapted | size)


def test_the_real_one():
    timm = pytest.importorskip("timm")
    assert registered_names("timm") == sorted(timm.list_models())
    for name in ("resnet18", "vit_tiny_patch16_224"):
        model = plugin.build(name, 224)
        assert model(torch.rand(1, 1, 224, 224)).shape == (1, 10)
