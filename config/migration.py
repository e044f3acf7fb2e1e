"""What becomes of an answer that has begun when its replica fails, freezes or is taken away."""

from enum import StrEnum

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from config.section import Section


class MigrationMode(StrEnum):
    """How an answer that has begun goes on when its engine does not."""

    EXACT = "exact"  # by the engine's own token ids where it tells them (vLLM), else as `text`
    TEXT = "text"  # by the text so far
    OFF = "off"  # it ends with an error event


class Migration(Section):
    """Answers that have begun and whose replica dies, freezes or is taken away go on elsewhere (docs/migration.md)."""

    mode: MigrationMode = MigrationMode.EXACT
    max_moves: NonNegativeInt = Field(
        16, description="of one answer, whatever moved it; then it ends with an error event"
    )
    max_wait_s: PositiveFloat = Field(30.0, description="for another replica, while the client is kept waiting")
    documents_from_tokens: PositiveInt = Field(
        256,
        description="an answer that is not streamed to its client moves, too, where it may be so long: its engine is asked to stream it",
    )
    journal_bytes: PositiveInt = Field(
        1024 * 1024, description="kept of one answer, prompt's token ids included; beyond it text must do, then nothing"
    )
