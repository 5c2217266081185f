"""Settings of how a training is spread over devices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tfrec.section import Section


class Spread(Section):
    strategy: Literal["none", "mirrored", "multi_worker", "tpu", "parameter_server"] = Field(
        default="none", description="of tf.distribute: docs/strategies.md"
    )
    devices: int = Field(default=0, ge=0, description="replicas of a mirrored strategy; 0 = every GPU")
    tpu: str = Field(default="", description="tpu: its name or grpc:// address; empty = as the environment says")
    peer_seconds: float = Field(
        default=300, gt=0, description="multi_worker, parameter_server: until a process that does not come is missed"
    )
    jit: bool = Field(default=False, description="compile the step with XLA, in static shapes")

    @model_validator(mode="after")
    def _go_with_the_strategy(self) -> Spread:
        if self.jit and self.strategy not in ("none", "tpu"):
            raise ValueError('train.jit goes with train.strategy = "none", and "tpu" needs no setting for it')
        if self.devices and self.strategy != "mirrored":
            raise ValueError('train.devices goes with train.strategy = "mirrored"')
        if self.tpu and self.strategy != "tpu":
            raise ValueError('train.tpu goes with train.strategy = "tpu"')
        return self

    @property
    def static(self) -> bool:
        """Whether the step must have shapes that do not depend on values."""
        return self.jit or self.strategy == "tpu"
