"""What every part of the configuration is: frozen, its keys known, its numbers finite."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the configuration; a key it does not know is an error."""

    # Inputs stay out of error texts because they may be secrets; `config.problems` shows those that are not.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
