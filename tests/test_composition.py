"""Options of groups are composed one by one; what comes of them is what Hydra makes of the whole command line."""

from __future__ import annotations

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners.composition import CONF, composed
from runners.schema import GROUPS

OPTIONS = {group: sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")) for group in GROUPS}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "task=sst2_mask model=roberta-large scheme=lora optimizer=adamw precision=bf16 schedule=cosine budget=seconds "
        "seed=3 optimizer.betas=[0.8,0.9] task.data_seed=${seed} data.root=here wandb.mode=offline save=null",
        "task=squad scheme=prefix loss=f1 optimizer.lr=${optimizer.zo_eps} optimizer=zo_adam model.path=${oc.env:HOME}",
        "optimizer=hybrid scheme=lora optimizer@optimizer.zeroth=zo_adam optimizer@optimizer.first=sgd "
        "optimizer.zeroth.q=3 optimizer.lr=1",
        "optimizer.q=2 optimizer=sgd optimizer=zo_adam optimizer.q=3",
        "+optimizer.more={a:[1,2]} ++task.n_dev=7 scheme=lora",
        "~optimizer.sides optimizer.search={full:{lr:[1]}} hydra.verbose=true",
    ],
)
def test_it_is_what_hydra_composes(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "somewhere")
    overrides = line.split()
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        whole = OmegaConf.to_container(hydra.compose("run", overrides), resolve=True)
    found = OmegaConf.to_container(composed(overrides), resolve=True)
    assert found == whole
    assert str(found) == str(whole)  # in the same order


@pytest.mark.parametrize("override", ["optimizer.nothing=1", "seed=high", "optimizer=nobody", "hydra.nothing=1"])
def test_what_hydra_refuses_is_refused(override: str) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)):
        composed(["optimizer=adamw", override])


def test_the_config_is_the_callers() -> None:
    for line in ("optimizer=adamw", "+data.more=1"):
        composed([line]).seed = 99
        assert composed([line]).seed == 1


@pytest.mark.parametrize("group", GROUPS)
def test_an_option_is_of_its_group_alone(group: str) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        for option in OPTIONS[group]:
            assert list(hydra.compose(f"{group}/{option}")) == [group], option
